"""Where dlm-serve meets SGLang."""
