"""The scheduler's process: what requests become there, step by step."""
