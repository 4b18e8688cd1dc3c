# syntax=docker/dockerfile:1
# One image for every Turnline process; the command selects it. It contains no secrets: settings come from the environment.

FROM python:3.12-slim AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/turnline
WORKDIR /src
COPY requirements/run.txt requirements/run.txt
RUN /opt/turnline/bin/pip install --require-hashes --only-binary :all: -r requirements/run.txt
COPY pyproject.toml README.md LICENSE alembic.ini beat_schedule.py failpoints.py settings.py ./
COPY api api
COPY cli cli
COPY engine engine
COPY integrations integrations
COPY migrations migrations
COPY models models
COPY sandbox sandbox
COPY store store
COPY observability observability
COPY realtime realtime
COPY tasks tasks
COPY worker worker
RUN /opt/turnline/bin/pip install "hatchling>=1.27" && /opt/turnline/bin/pip install --no-deps --no-build-isolation .

FROM python:3.12-slim
# An unprivileged user that owns one directory: beat's record of what it sent last.
RUN useradd --system --uid 10001 --home-dir /var/lib/turnline --create-home --shell /usr/sbin/nologin turnline
COPY --from=build /opt/turnline /opt/turnline
ENV PATH=/opt/turnline/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    CELERY_CUSTOM_WORKER_POOL=worker.pool:TaskPool \
    TURNLINE_HOME=/var/lib/turnline
WORKDIR /var/lib/turnline
USER turnline
# `turnline` replaces itself with the process (exec), so SIGTERM reaches it directly.
ENTRYPOINT ["turnline"]
CMD ["--help"]
