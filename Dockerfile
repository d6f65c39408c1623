# For docker-compose.yml: the default project that serves its demo, and the packages that the tests use. A project has its
# own Dockerfile.
FROM python:3.13-slim AS tools
WORKDIR /template
COPY pyproject.toml ./
# hadolint ignore=DL3013
RUN pip install --no-cache-dir --root-user-action=ignore pip==26.3 && \
    pip install --no-cache-dir --root-user-action=ignore --group bake

FROM tools AS bake
COPY . ./
RUN cookiecutter . --no-input --output-dir /bakes

FROM python:3.13-slim AS demo
COPY --from=bake /bakes/cluster-app /app
RUN pip install --no-cache-dir --root-user-action=ignore /app
USER 10001:10001
CMD ["cluster-app", "serve"]

FROM tools AS tests
# hadolint ignore=DL3008
RUN apt-get update && \
    apt-get install --yes --no-install-recommends git make openssl redis-server systemd && \
    rm -rf /var/lib/apt/lists/*
CMD ["make", "test"]
