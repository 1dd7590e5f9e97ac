"""What a decode step means: tensor functions of token ids, confidences and entropies, and their host half.

Imports torch and the kernels only, so that it can be read, tested and reused without SGLang.
"""

from dlm_kernels.sample_token import Nucleus, Sampling

from dlm_serve.decoding.attention_spec import AttentionSpec
from dlm_serve.decoding.commit import BlockCommit, CausalCommit, Commit, Forward, WindowAlgorithm, WindowCommit
from dlm_serve.decoding.decode_plan import AUTOREGRESSIVELY, Choice, DecodePlan, ModeSettings, name_of
from dlm_serve.decoding.denoise import BlockAlgorithm
from dlm_serve.decoding.history import BlockHistory, Snapshot
from dlm_serve.decoding.logit_rules import LogitRules, RuledRows
from dlm_serve.decoding.modes import ConcreteMode, Mode, Phase, Speculation
from dlm_serve.decoding.prompt_mask import PromptMask
from dlm_serve.decoding.request_state import BlockRecord, Evidence, RequestState, Tally
from dlm_serve.decoding.rows import RowOptions, Rows
from dlm_serve.decoding.step_output import StepOutput
from dlm_serve.decoding.stop_rules import StopRule
from dlm_serve.decoding.token_choice import Prediction, TokenChoice

__all__ = [
    "AUTOREGRESSIVELY",
    "AttentionSpec",
    "BlockAlgorithm",
    "BlockCommit",
    "BlockHistory",
    "BlockRecord",
    "CausalCommit",
    "Choice",
    "Commit",
    "ConcreteMode",
    "DecodePlan",
    "Evidence",
    "Forward",
    "LogitRules",
    "Mode",
    "ModeSettings",
    "Nucleus",
    "Phase",
    "Prediction",
    "PromptMask",
    "RequestState",
    "RowOptions",
    "Rows",
    "RuledRows",
    "Sampling",
    "Snapshot",
    "Speculation",
    "StepOutput",
    "StopRule",
    "Tally",
    "TokenChoice",
    "WindowAlgorithm",
    "WindowCommit",
    "name_of",
]
