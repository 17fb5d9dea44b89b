# memdiag's two images: `--target operator` and `--target node-runner`.
#
# Both run Debian's Python, because bcc is Debian's python3-bpfcc (the `bcc` on PyPI is another project). What changes
# often comes last: a change of the source makes one small layer anew, and reinstalls nothing.

ARG BASE_IMAGE=debian:trixie-slim

FROM ${BASE_IMAGE} AS python
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/*-old /var/cache/ldconfig /var/log/*

# --- built here, copied from here; never part of an image ---

FROM python AS build
RUN apt-get update && apt-get install --yes --no-install-recommends python3-pip python3-hatchling
# Made where it will lie in the images: a script names its interpreter by path.
RUN python3 -m venv --without-pip /opt/memdiag

FROM build AS operator-dependencies
COPY requirements/operator.txt /requirements.txt
RUN python3 -m pip --python /opt/memdiag install --no-cache-dir --require-hashes --only-binary :all: -r /requirements.txt \
    # the same client once more, for asyncio; the operator uses the other
    && rm -rf /opt/memdiag/lib/python3*/site-packages/kubernetes/aio

FROM build AS node-runner-dependencies
COPY requirements/node-runner.txt /requirements.txt
RUN python3 -m pip --python /opt/memdiag install --no-cache-dir --require-hashes --only-binary :all: -r /requirements.txt \
    # bcc lies outside of the environment; numpy's own tests and headers are no use
    && sed -i 's/^include-system-site-packages = false/include-system-site-packages = true/' /opt/memdiag/pyvenv.cfg \
    && rm -rf /opt/memdiag/lib/python3*/site-packages/numpy/tests \
              /opt/memdiag/lib/python3*/site-packages/numpy/*/tests \
              /opt/memdiag/lib/python3*/site-packages/numpy/_core/include

FROM build AS package
COPY pyproject.toml README.md LICENSE /source/
COPY operator /source/operator
COPY node_runner /source/node_runner
RUN python3 -m pip wheel --no-cache-dir --no-deps --no-build-isolation --no-index --wheel-dir /wheels /source
RUN python3 -m pip --python /opt/memdiag install --no-deps --no-index --prefix /package /wheels/*.whl

# --- the images ---

FROM python AS operator
LABEL org.opencontainers.image.title="memdiag operator" \
      org.opencontainers.image.description="Answers where a Kubernetes node's memory went" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=operator-dependencies /opt/memdiag /opt/memdiag
COPY --from=package /package /opt/memdiag
ENV PATH=/opt/memdiag/bin:/usr/bin:/bin PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 65532:65532
ENTRYPOINT ["memdiag-operator"]

FROM python AS node-runner
LABEL org.opencontainers.image.title="memdiag node runner" \
      org.opencontainers.image.description="Measures where one Linux host's memory went, with eBPF" \
      org.opencontainers.image.licenses="Apache-2.0"
# Most of this image is LLVM, with which bcc compiles: libLLVM 130 MB, libclang 71 MB, libz3 28 MB.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3-bpfcc \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/*-old /var/cache/ldconfig /var/log/*
COPY --from=node-runner-dependencies /opt/memdiag /opt/memdiag
COPY --from=package /package /opt/memdiag
ENV PATH=/opt/memdiag/bin:/usr/sbin:/usr/bin:/sbin:/bin PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
ENTRYPOINT ["memdiag-node"]
