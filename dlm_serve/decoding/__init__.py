"""What a decode step means: pure tensor functions of token ids, confidences and entropies.

Imports torch only, so that it can be read, tested and reused without SGLang.
"""

from dlm_serve.decoding.forward import Emission, Layout
from dlm_serve.decoding.phase import ConcreteMode, Mode, Phase
from dlm_serve.decoding.policy import Commit, Policy, Prefill, Sharing
from dlm_serve.decoding.prefill import stretch_ends
from dlm_serve.decoding.rows import Rows, RowSettings
from dlm_serve.decoding.sampling import Prediction, Sampling, predict, resample, sample
from dlm_serve.decoding.step import advance, advance_, carry, hand_out, layout

__all__ = [
    "Commit",
    "ConcreteMode",
    "Emission",
    "Layout",
    "Mode",
    "Phase",
    "Policy",
    "Prediction",
    "Prefill",
    "RowSettings",
    "Rows",
    "Sampling",
    "Sharing",
    "advance",
    "advance_",
    "carry",
    "hand_out",
    "layout",
    "predict",
    "resample",
    "sample",
    "stretch_ends",
]
