"""Which KV slots a row may write."""
