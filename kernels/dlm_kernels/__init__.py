"""Kernels for serving diffusion language models. Each has a readable reference that defines it."""
