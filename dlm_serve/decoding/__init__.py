"""What a decode step means: pure tensor functions of token ids, confidences and entropies.

Imports torch only, so that it can be read, tested and reused without SGLang.
"""

from dlm_serve.decoding.phase import Mode, Phase
from dlm_serve.decoding.rows import Rows, RowSettings
from dlm_serve.decoding.sampling import Prediction, Sampling, predict, resample, sample
from dlm_serve.decoding.step import Emission, Layout, advance, advance_, carry, layout, shift_of

__all__ = [
    "Emission",
    "Layout",
    "Mode",
    "Phase",
    "Prediction",
    "RowSettings",
    "Rows",
    "Sampling",
    "advance",
    "advance_",
    "carry",
    "layout",
    "predict",
    "resample",
    "sample",
    "shift_of",
]
