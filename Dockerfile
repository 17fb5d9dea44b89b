# memdiag's two images: `--target operator` and `--target node-runner`. `--target sbom` has only their bills of materials.
#
# Both use Debian's Python, because bcc is Debian's python3-bpfcc (the `bcc` on PyPI is an unrelated project). Parts
# that change often come last: a source change rebuilds one small layer and reinstalls nothing.
#
# Arguments, which `make release-images` passes:
#   BASE_IMAGE   the base image to build on, preferably with a digest
#   BASE_NAME    the requested name of the base image
#   BASE_DIGEST  its digest; a build without it fails
#   VERSION      the version of memdiag
#   REVISION     the commit that the images are built from
#   SOURCE       the URL of the sources with that commit

ARG BASE_IMAGE=debian:trixie-slim
ARG BASE_NAME=${BASE_IMAGE}
ARG BASE_DIGEST
ARG VERSION
ARG REVISION
ARG SOURCE

FROM ${BASE_IMAGE} AS python
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/*-old /var/cache/ldconfig /var/log/*

# --- build stages: the images only copy from them ---

FROM python AS build
RUN apt-get update && apt-get install --yes --no-install-recommends python3-pip python3-hatchling
# At the same path as in the images: scripts contain the path of their interpreter.
RUN python3 -m venv --without-pip /opt/memdiag

FROM build AS operator-dependencies
COPY requirements/operator.txt /requirements.txt
RUN python3 -m pip --python /opt/memdiag install --no-cache-dir --require-hashes --only-binary :all: --report /pip-report.json \
        -r /requirements.txt \
    # the asyncio copy of the client; the operator uses the other one
    && rm -rf /opt/memdiag/lib/python3*/site-packages/kubernetes/aio

FROM build AS node-runner-dependencies
COPY requirements/node-runner.txt /requirements.txt
RUN python3 -m pip --python /opt/memdiag install --no-cache-dir --require-hashes --only-binary :all: --report /pip-report.json \
        -r /requirements.txt \
    # bcc is outside the environment; numpy's own tests and headers are not needed
    && sed -i 's/^include-system-site-packages = false/include-system-site-packages = true/' /opt/memdiag/pyvenv.cfg \
    && rm -rf /opt/memdiag/lib/python3*/site-packages/numpy/tests \
              /opt/memdiag/lib/python3*/site-packages/numpy/*/tests \
              /opt/memdiag/lib/python3*/site-packages/numpy/_core/include

FROM build AS package
COPY pyproject.toml README.md LICENSE /source/
COPY api /source/api
COPY operator /source/operator
COPY node_runner /source/node_runner
RUN python3 -m pip wheel --no-cache-dir --no-deps --no-build-isolation --no-index --wheel-dir /wheels /source
RUN python3 -m pip --python /opt/memdiag install --no-deps --no-index --prefix /package /wheels/*.whl

# --- the contents of the images, and their bills of materials ---

FROM python AS operator-files
COPY --from=operator-dependencies /opt/memdiag /opt/memdiag
COPY --from=package /package /opt/memdiag

FROM python AS node-runner-files
# Most of this image is LLVM, bcc's compiler: libLLVM 130 MB, libclang 71 MB, libz3 28 MB.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3-bpfcc \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/*-old /var/cache/ldconfig /var/log/*
COPY --from=node-runner-dependencies /opt/memdiag /opt/memdiag
COPY --from=package /package /opt/memdiag

# They also contain all values of the labels: buildah reuses a cached label even if its argument has changed, unless the
# files that were copied before it differ.
FROM operator-files AS operator-sbom
COPY tools/sbom.py /sbom.py
COPY --from=operator-dependencies /pip-report.json /pip-report.json
ARG VERSION
ARG REVISION
ARG SOURCE
ARG BASE_NAME
ARG BASE_DIGEST
RUN python3 /sbom.py --name=memdiag-operator --version="${VERSION}" \
        --revision="${REVISION}" --source="${SOURCE}" \
        --base-name="${BASE_NAME}" --base-digest="${BASE_DIGEST}" --pip-report=/pip-report.json \
        --site-packages="$(echo /opt/memdiag/lib/python3*/site-packages)" > /sbom.json

FROM node-runner-files AS node-runner-sbom
COPY tools/sbom.py /sbom.py
COPY --from=node-runner-dependencies /pip-report.json /pip-report.json
ARG VERSION
ARG REVISION
ARG SOURCE
ARG BASE_NAME
ARG BASE_DIGEST
RUN python3 /sbom.py --name=memdiag-node-runner --version="${VERSION}" \
        --revision="${REVISION}" --source="${SOURCE}" \
        --base-name="${BASE_NAME}" --base-digest="${BASE_DIGEST}" --pip-report=/pip-report.json \
        --site-packages="$(echo /opt/memdiag/lib/python3*/site-packages)" > /sbom.json

FROM scratch AS sbom
COPY --from=operator-sbom /sbom.json /operator.cdx.json
COPY --from=node-runner-sbom /sbom.json /node-runner.cdx.json

# --- the images ---

FROM operator-files AS operator
COPY --from=operator-sbom /sbom.json /opt/memdiag/sbom.cdx.json
ENV PATH=/opt/memdiag/bin:/usr/bin:/bin PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 65532:65532
ENTRYPOINT ["memdiag-operator"]
ARG VERSION
ARG REVISION
ARG SOURCE
ARG BASE_NAME
ARG BASE_DIGEST
LABEL org.opencontainers.image.title="memdiag operator" \
      org.opencontainers.image.description="Answers where a Kubernetes node's memory went" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.base.name="${BASE_NAME}" \
      org.opencontainers.image.base.digest="${BASE_DIGEST}"

FROM node-runner-files AS node-runner
COPY --from=node-runner-sbom /sbom.json /opt/memdiag/sbom.cdx.json
ENV PATH=/opt/memdiag/bin:/usr/sbin:/usr/bin:/sbin:/bin PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
ENTRYPOINT ["memdiag-node"]
ARG VERSION
ARG REVISION
ARG SOURCE
ARG BASE_NAME
ARG BASE_DIGEST
LABEL org.opencontainers.image.title="memdiag node runner" \
      org.opencontainers.image.description="Measures where one Linux host's memory went, with eBPF" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.base.name="${BASE_NAME}" \
      org.opencontainers.image.base.digest="${BASE_DIGEST}"
