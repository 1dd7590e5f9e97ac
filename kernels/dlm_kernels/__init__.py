"""Provide kernels for serving diffusion language models, each defined by a readable reference."""
