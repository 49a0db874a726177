# The service, and (--target sandbox) the sandbox that plays Toss. Needs no network besides the package index.
FROM python:3.13-slim-trixie AS build
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_NO_CACHE=1 UV_PROJECT_ENVIRONMENT=/opt/bff/venv UV_PYTHON_DOWNLOADS=never
RUN python -m venv /opt/uv && /opt/uv/bin/pip install --no-cache-dir uv==0.13.9
WORKDIR /opt/bff
COPY pyproject.toml uv.lock ./
# "--extra tracing" for spans.
ARG EXTRAS=
# hadolint ignore=SC2086
RUN /opt/uv/bin/uv sync --locked --no-dev ${EXTRAS} \
    && /opt/uv/bin/uv export --quiet --locked --no-dev ${EXTRAS} --format cyclonedx1.5 --output-file sbom.cdx.json
COPY app app
RUN python -m compileall -q app

FROM build AS build-sandbox
RUN /opt/uv/bin/uv sync --locked --no-dev --group sandbox
COPY sandbox sandbox
RUN python -m compileall -q sandbox

FROM python:3.13-slim-trixie AS runtime
# Toss's servers are checked against the system's authorities, which come with the base.
RUN test -s /etc/ssl/certs/ca-certificates.crt \
    && useradd --uid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin bff \
    && install -d -o bff -g bff /opt/bff/var
WORKDIR /opt/bff
ENV PATH=/opt/bff/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# By number, so that Kubernetes sees that it is not root.
USER 10001:10001

FROM runtime AS sandbox
COPY --from=build-sandbox /opt/bff/venv venv
COPY --from=build-sandbox /opt/bff/sandbox sandbox
EXPOSE 9443 9444 9445 9480
HEALTHCHECK --interval=2s --timeout=3s --start-period=60s \
    CMD ["python", "-Ic", "import urllib.request as r; r.urlopen('http://127.0.0.1:9480/control/config', timeout=2)"]
ENTRYPOINT ["python", "-m", "sandbox", "--only", "--host", "0.0.0.0"]

FROM runtime AS service
ENV BFF_SERVER__HOST=0.0.0.0
COPY --from=build /opt/bff/venv venv
COPY --from=build /opt/bff/sbom.cdx.json sbom.cdx.json
COPY --from=build /opt/bff/app app
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s \
    CMD ["python", "-Ic", "import os, urllib.request as r; r.urlopen(f\"http://127.0.0.1:{os.environ.get('BFF_SERVER__PORT', 8000)}/livez\", timeout=2)"]
ENTRYPOINT ["python", "-m", "app"]
CMD ["serve"]
