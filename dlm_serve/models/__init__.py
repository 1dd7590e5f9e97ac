"""One file per model family. SGLang finds the model classes here through SGLANG_EXTERNAL_MODEL_PACKAGE."""
