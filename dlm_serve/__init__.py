"""dlm-serve: diffusion language models through SGLang."""

__version__ = "0.1.0"
