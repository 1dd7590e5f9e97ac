"""Kernels for serving diffusion language models. Each lies beside a readable reference with the same signature."""
