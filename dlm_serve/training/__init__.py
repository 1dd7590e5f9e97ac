"""Convert an autoregressive model to diffusion, as the bundled model was."""
