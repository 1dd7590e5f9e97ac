"""The ways to commit; `base` says what each of them decides."""

from dlm_serve.decoding.commit.base import Commit, Forward
from dlm_serve.decoding.commit.block import BlockCommit
from dlm_serve.decoding.commit.causal import CausalCommit
from dlm_serve.decoding.commit.window import WindowAlgorithm, WindowCommit

__all__ = ["BlockCommit", "CausalCommit", "Commit", "Forward", "WindowAlgorithm", "WindowCommit"]
