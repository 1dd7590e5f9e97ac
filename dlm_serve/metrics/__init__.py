"""What a server counts, declared once, without SGLang and without Prometheus."""
