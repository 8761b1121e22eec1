# syntax=docker/dockerfile:1
# What of it has been seen: docs/tensorrt.md.
#
#   engines   builds TensorRT engines from ONNX parts (make engines, or compose.yaml)
#   cpu       ipt-serve with the Triton of the nvidia-pytriton wheel and OpenVINO
#   gateway   ipt-gateway: HTTP, keys and jobs in front of a server
#   server    ipt-serve in NGC's Triton container, for GPU repositories; the default
#
# TensorRT loads plans of its own version alone, so `engines` and `server` are of the same release. The model repository
# is mounted at /models. ipt-serve imports numpy and tritonclient; so only the folders below are needed of this project.
#
# Where the pins come from (read in November 2026, not seen in a running image):
#   tritonserver:26.07   the oldest that SECURITY.md allows; CUDA 13.3.1 and compute capability 7.5 or later by its
#                        release notes; Triton 2.71.0 by its README, Ubuntu 24.04 and Python 3.12 by its build.py and
#                        compatibility.md; TensorRT 11.1.0.106 by a public project that runs it. It has TensorRT's
#                        libraries; no list of its contents names Python bindings, so `engines` builds, `server` serves.
#   tensorrt:26.07       TensorRT 11.1.0.106 with its Python bindings, CUDA's headers and a compiler, by public
#                        Dockerfiles on it; its Python should be Ubuntu 24.04's 3.12, which no source at hand confirms.
#   numpy                below 2, which Triton's own build.py asks for beside the Python backend.
#   pycuda               2026.1 is the first that compiles against CUDA 13; Python 3.8 or later by its metadata.
#   nvidia-pytriton, openvino, tritonclient, and what the gateway has     as the tests run them.

FROM nvcr.io/nvidia/tensorrt:26.07-py3 AS engines
# The images' own Python runs everything; there is no other here to keep the packages apart from.
ENV PIP_BREAK_SYSTEM_PACKAGES=1
RUN pip install --no-cache-dir numpy==1.26.4 pycuda==2026.1
COPY src/ipt_triton/*.py /opt/ipt/ipt_triton/
COPY export/__init__.py /opt/ipt/ipt_triton/export/
COPY export/engines/*.py /opt/ipt/ipt_triton/export/engines/
WORKDIR /project
USER 1000:1000
ENV PYTHONPATH=/opt/ipt PYTHONDONTWRITEBYTECODE=1
ENTRYPOINT ["python3", "-m", "ipt_triton.export.engines.build"]
CMD ["build/parts", "--output", "build/engines"]


FROM python:3.11.13-slim-bookworm AS cpu
RUN pip install --no-cache-dir "numpy<2" nvidia-pytriton==0.7.0 openvino==2026.4.1 "tritonclient[grpc]==2.73.0" \
    && useradd --uid 1000 --no-create-home ipt
COPY src/ipt_triton/*.py /opt/ipt/ipt_triton/
COPY export/__init__.py /opt/ipt/ipt_triton/export/
COPY export/engines/*.py /opt/ipt/ipt_triton/export/engines/
COPY export/serving/*.py /opt/ipt/ipt_triton/export/serving/
ENV PYTHONPATH=/opt/ipt PYTHONDONTWRITEBYTECODE=1
USER 1000:1000
EXPOSE 8001 8003
HEALTHCHECK --interval=10s --timeout=5s --start-period=300s --retries=3 \
    CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8003/readyz', timeout=3)"]
ENTRYPOINT ["python3", "-m", "ipt_triton.export.serving.command", "--repository", "/models", "--host", "0.0.0.0"]


FROM python:3.11.13-slim-bookworm AS gateway
RUN pip install --no-cache-dir numpy==1.26.4 opencv-python-headless==4.11.0.86 pillow==12.3.0 tqdm==4.70.1 \
    "tritonclient[grpc]==2.73.0" anyio==4.16.0 fastapi==0.165.0 opentelemetry-exporter-otlp-proto-http==1.45.2 \
    opentelemetry-sdk==1.45.2 prometheus-client==0.26.0 python-multipart==0.0.34 uvicorn==0.54.0 && useradd --uid 1000 --no-create-home ipt
COPY src/ipt_triton/*.py /opt/ipt/ipt_triton/
COPY src/ipt_triton/photos/* /opt/ipt/ipt_triton/photos/
COPY client/*.py /opt/ipt/ipt_triton/client/
COPY client/photo/*.py /opt/ipt/ipt_triton/client/photo/
COPY client/gateway/*.py /opt/ipt/ipt_triton/client/gateway/
COPY client/gateway/page/* /opt/ipt/ipt_triton/client/gateway/page/
COPY client/gateway/examples/* /opt/ipt/ipt_triton/client/gateway/examples/
ENV PYTHONPATH=/opt/ipt PYTHONDONTWRITEBYTECODE=1
USER 1000:1000
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/healthz', timeout=3)"]
ENTRYPOINT ["python3", "-m", "ipt_triton.client.gateway.command"]


FROM nvcr.io/nvidia/tritonserver:26.07-py3 AS server
ENV PIP_BREAK_SYSTEM_PACKAGES=1
RUN pip install --no-cache-dir numpy==1.26.4 "tritonclient[grpc]==2.73.0"
COPY src/ipt_triton/*.py /opt/ipt/ipt_triton/
COPY export/__init__.py /opt/ipt/ipt_triton/export/
COPY export/engines/*.py /opt/ipt/ipt_triton/export/engines/
COPY export/serving/*.py /opt/ipt/ipt_triton/export/serving/
ENV PYTHONPATH=/opt/ipt PYTHONDONTWRITEBYTECODE=1
USER 1000:1000
EXPOSE 8001 8003
HEALTHCHECK --interval=10s --timeout=5s --start-period=300s --retries=3 \
    CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8003/readyz', timeout=3)"]
ENTRYPOINT ["python3", "-m", "ipt_triton.export.serving.command", "--repository", "/models", "--host", "0.0.0.0"]
