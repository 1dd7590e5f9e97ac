"""Checkpoints and model classes. SGLang finds the classes here through SGLANG_EXTERNAL_MODEL_PACKAGE."""
