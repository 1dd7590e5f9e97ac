"""What a step consists of, decided without an engine: imports neither SGLang nor a model."""
