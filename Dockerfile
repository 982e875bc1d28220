# The environment of `make env` in a container, for CPU and for NVIDIA GPUs (docker run --gpus all): torch brings its CUDA.
FROM debian:bookworm-slim

RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates git make python3 python3-venv rsync \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 1000 mfcore && mkdir /mfcore && chown mfcore:mfcore /mfcore
USER mfcore
WORKDIR /mfcore

# The environment before the code, so that a change of code doesn't install it again. A CPU build of torch comes from
# PyTorch's own index: docker build --build-arg PIP_EXTRA_INDEX_URL=...
ARG PIP_EXTRA_INDEX_URL
COPY --chown=mfcore Makefile pyproject.toml pins.txt README.md LICENSE ./
COPY --chown=mfcore mfcore/__init__.py mfcore/__init__.py
RUN PIP_NO_CACHE_DIR=1 make env EXTRAS=kubernetes
COPY --chown=mfcore . .

ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
EXPOSE 8888
CMD ["make"]
