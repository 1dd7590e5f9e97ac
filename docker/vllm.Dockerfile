# dlm-serve on vLLM's image, for NVIDIA GPUs. Built in the root of the repository:
#
#   docker build -f docker/vllm.Dockerfile -t dlm-serve-vllm:0.1.0 .
#
# The tag is the one version of vLLM that dlm-serve supports. No digest is pinned: none has been verified.
FROM vllm/vllm-openai:v0.32.0

COPY pyproject.toml README.md LICENSE /opt/dlm-serve/
COPY dlm_serve /opt/dlm-serve/dlm_serve
COPY kernels /opt/dlm-serve/kernels
# Without what pip would take from the package: SGLang, which needs another PyTorch. vLLM brings what the plugin imports.
RUN python3 -m pip install --no-cache-dir --no-deps /opt/dlm-serve

EXPOSE 8000
# Loading weights and capturing graphs takes minutes.
HEALTHCHECK --interval=30s --timeout=10s --start-period=20m --retries=3 \
    CMD ["python3", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=9)"]
