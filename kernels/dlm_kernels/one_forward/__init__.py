"""Self-speculation in one forward: `decoding.one_forward`, which defines it, with a Triton program per row."""
