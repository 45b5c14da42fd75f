# scripts/exercise-image performs these steps without Docker; change both together.

FROM python:3.13-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build

# The tools that build wheels stay in this stage; what runs goes to /opt/ingest, which has no pip.
COPY requirements/build.txt requirements/run.txt requirements/
RUN python -m pip install --no-deps --require-hashes --only-binary :all: -r requirements/build.txt \
    && python -m venv --without-pip /opt/ingest \
    && python -m pip --python /opt/ingest/bin/python install \
        --no-deps --require-hashes --only-binary :all: -r requirements/run.txt

COPY pyproject.toml LICENSE ./
COPY clients/python clients/python
COPY eventstore eventstore
COPY worker worker
COPY ingest_service ingest_service
RUN python -m pip wheel --no-deps --no-build-isolation --wheel-dir wheels ./clients/python . \
    && python -m pip --python /opt/ingest/bin/python install --no-deps wheels/*.whl


FROM python:3.13-slim-bookworm
ENV PATH=/opt/ingest/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    INGEST_LISTEN=0.0.0.0:50051
RUN groupadd --system --gid 10001 ingest \
    && useradd --system --uid 10001 --gid 10001 --no-create-home --shell /usr/sbin/nologin ingest
COPY --from=build /opt/ingest /opt/ingest
WORKDIR /tmp
USER 10001:10001
# Give it INGEST_TLS_CERT_FILE and INGEST_TLS_KEY_FILE, or INGEST_PLAINTEXT=true behind what ends TLS; else it does not start.
EXPOSE 50051
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 CMD ["ingest-service", "health"]
ENTRYPOINT ["ingest-service"]
CMD ["serve"]
