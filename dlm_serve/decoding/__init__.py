"""What a decode step means: pure tensor functions of token ids, confidences and entropies.

Imports torch and the kernels only, so that it can be read, tested and reused without SGLang.
"""

from dlm_serve.decoding.endings import StopRule
from dlm_serve.decoding.forward import Emission, Layout
from dlm_serve.decoding.phase import ConcreteMode, Mode, Phase
from dlm_serve.decoding.policy import Commit, Policy, Prefill, Sharing
from dlm_serve.decoding.prefill import stretch_ends
from dlm_serve.decoding.rows import Rows, RowSettings
from dlm_serve.decoding.sampling import (
    Nucleus,
    Prediction,
    Sampling,
    predict,
    random_confidence,
    resample,
    sample,
    scores_of,
)
from dlm_serve.decoding.step import advance, advance_, carry, hand_out, layout
from dlm_serve.decoding.unmasking import Unmasking

__all__ = [
    "Commit",
    "ConcreteMode",
    "Emission",
    "Layout",
    "Mode",
    "Nucleus",
    "Phase",
    "Policy",
    "Prediction",
    "Prefill",
    "RowSettings",
    "Rows",
    "Sampling",
    "Sharing",
    "StopRule",
    "Unmasking",
    "advance",
    "advance_",
    "carry",
    "hand_out",
    "layout",
    "predict",
    "random_confidence",
    "resample",
    "sample",
    "scores_of",
    "stretch_ends",
]
