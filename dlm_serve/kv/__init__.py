"""Which KV slots a row reads, and which it may write."""
