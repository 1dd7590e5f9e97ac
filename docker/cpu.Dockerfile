# nano on plain PyTorch, for trying dlm-serve without a GPU. About 10 GB. Built in the root of the repository:
#
#   docker build -f docker/cpu.Dockerfile -t dlm-serve:cpu .
FROM python:3.11

COPY requirements.lock pyproject.toml README.md LICENSE /opt/dlm-serve/
COPY dlm_serve /opt/dlm-serve/dlm_serve
COPY kernels /opt/dlm-serve/kernels
COPY docker/install.sh /opt/dlm-serve/docker/
RUN /opt/dlm-serve/docker/install.sh /opt/dlm-serve --constraint /opt/dlm-serve/requirements.lock

RUN useradd --uid 1000 --create-home dlm
ENV HOME=/home/dlm DLM_SERVE_PLATFORM=cpu
WORKDIR /home/dlm
USER 1000

EXPOSE 30000
HEALTHCHECK --interval=30s --timeout=25s --start-period=5m --retries=3 \
    CMD ["python3", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:30000/health_generate', timeout=24)"]
CMD ["python3", "-m", "sglang.launch_server", "--model-path", "nano", "--host", "0.0.0.0", "--port", "30000"]
