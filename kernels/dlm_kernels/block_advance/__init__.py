"""Advance rows by one decode step, in place. The tensor functions of `dlm_serve.decoding.commit.causal` define it."""
