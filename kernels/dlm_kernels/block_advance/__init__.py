"""One decode step of rows in place; defined by `dlm_serve.decoding.step`, whose tensor functions are its reference."""
