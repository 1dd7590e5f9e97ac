"""Measure how good and how fast a running server answers, mode by mode, on questions with exact answers."""
