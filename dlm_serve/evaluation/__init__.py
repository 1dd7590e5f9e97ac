"""How good and how fast the answers of a running server are, mode by mode, on questions that can be scored exactly."""
