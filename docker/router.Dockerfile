# SGLang's router: docker build -f docker/router.Dockerfile -t dlm-serve-router:0.3.2 .
FROM python:3.11-slim

RUN pip install --no-cache-dir sglang-router==0.3.2
USER 1000

EXPOSE 30000
HEALTHCHECK CMD ["python3", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:30000/health', timeout=5)"]
ENTRYPOINT ["python3", "-m", "sglang_router.launch_router", "--host", "0.0.0.0", "--port", "30000"]
