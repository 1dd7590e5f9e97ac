"""One decode step of rows in place. The tensor functions of `dlm_serve.decoding.causal` define it."""
