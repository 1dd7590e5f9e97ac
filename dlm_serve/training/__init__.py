"""The conversion of an autoregressive model to a diffusion one, and what built the bundled model."""
