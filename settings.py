"""All settings, read from environment variables once at startup. docs/operations.md lists them."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AliasChoices, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

__version__ = "0.1.0"  # the only place: the package, the API and `turnline --version` read it


class Settings(BaseSettings):
    """Configuration from environment variables. Common variables keep their usual names; all others start with TURNLINE_."""

    model_config = SettingsConfigDict(
        frozen=True,
        env_prefix="TURNLINE_",
        extra="ignore",
        env_ignore_empty=True,
        hide_input_in_errors=True,  # an invalid URL may contain a password
    )

    # Connections
    database_url: str = Field("", validation_alias="DATABASE_URL", description="Postgres URL of a login that may become turnline_app.")
    owner_database_url: str = Field("", description="Postgres URL for `turnline migrate`. Default: DATABASE_URL.")
    maintenance_database_url: str = Field("", description="Postgres URL for the sweep and scheduled jobs. Default: DATABASE_URL.")
    broker_url: str = Field("", validation_alias="CELERY_BROKER_URL", description="Redis or Valkey (redis://), or RabbitMQ (amqp://).")
    redis_url: str = Field(
        "", validation_alias="REDIS_URL", description="Redis for realtime messages, such as streamed tokens. Default: the broker, if Redis."
    )
    openai_api_key: SecretStr = Field(SecretStr(""), validation_alias="OPENAI_API_KEY", description="API key of the model provider.")
    openai_base_url: str = Field(
        "https://api.openai.com/v1", validation_alias="OPENAI_BASE_URL", description="URL of OpenAI or of a compatible server."
    )
    secret_keys: SecretStr = Field(
        SecretStr(""),
        description="Keys that encrypt tools' secrets at rest, comma-separated, each 32 bytes in base64. The first encrypts, all decrypt.",
    )
    log_level: str = Field("INFO", validation_alias=AliasChoices("TURNLINE_LOG_LEVEL", "LOG_LEVEL"), description="Python's log level.")

    # `turnline up`: everything on one machine
    home: Path = Field(Path(".turnline"), description="Data directory of `turnline up`: databases, logs and generated secrets.")
    postgres_port: int = Field(54329, description="Port of the embedded Postgres.")
    valkey_port: int = Field(63799, description="Port of the embedded Valkey.")
    sandbox_port: int = Field(8900, description="Port of the sandbox model provider, which runs if no provider is configured.")

    # API
    api_host: str = Field("127.0.0.1", description="Address that the API listens on.")
    api_port: int = Field(8000, description="Port that the API listens on.")
    request_max_bytes: int = Field(256 * 1024, description="Maximum size of a request body; larger ones get 413.")
    session_max_open: int = Field(20, ge=0, description="Maximum open turns of a session; further messages get 429. 0: no limit.")
    workspace_max_open: int = Field(10_000, ge=0, description="Maximum open turns of a workspace; further messages get 429. 0: no limit.")
    max_open: int = Field(
        0, ge=0, description="Maximum turns of all workspaces that wait for a worker or run; further messages get 429. 0: no limit."
    )
    max_behind_s: float = Field(
        60.0, ge=0, description="Seconds that turns may wait for a worker before all new messages get 429. 0: no limit."
    )

    # Turns
    turn_lease_s: float = Field(30.0, gt=0, description="Seconds until a claim without a heartbeat expires.")
    turn_heartbeat_s: float = Field(10.0, gt=0, description="Seconds between heartbeats of a claim.")
    turn_max_attempts: int = Field(5, ge=1, description="Claims before a turn is dead.")
    turn_model_calls: int = Field(8, ge=1, description="Maximum answered model calls per turn.")
    turn_tool_calls: int = Field(16, ge=0, description="Maximum tool calls per turn.")
    turn_steps: int = Field(24, ge=1, description="Maximum model and tool calls per turn, together.")
    turn_wall_clock_s: float = Field(
        600.0, gt=0, description="Seconds that workers may spend on one turn. Waiting for an approval or a provider does not count."
    )
    approval_s: float = Field(86_400.0, gt=0, description="Seconds until an undecided approval expires.")
    stop_look_s: float = Field(0.4, gt=0, description="Seconds between a worker's checks for cancelled turns.")
    workspace_in_flight: int = Field(
        200, ge=1, description="In-flight limit of a workspace: turns that are dispatched or running at a time, over all workers."
    )
    history_events: int = Field(400, ge=10, description="Number of a session's latest events in the turn context.")
    sweep_every_s: float = Field(5.0, description="Seconds between sweeps.")
    ring_stale_s: float = Field(10.0, description="Seconds until a dispatched turn that is still unclaimed is dispatched again.")

    # Maintenance and monitoring
    audit_max_s: float = Field(60.0, gt=0, le=240, description="Maximum seconds of one audit. The next one continues where it ended.")
    scheduler: Literal["file", "redbeat"] = Field(
        "file", description="Celery beat's schedule. redbeat: several beats share it in REDIS_URL, and one at a time sends."
    )
    metrics_host: str = Field("127.0.0.1", description="Address that workers serve metrics on.")
    metrics_port: int = Field(
        9810,
        ge=0,
        le=65535,
        description="First port for workers' metrics; a worker takes the first free one of a hundred. 0: no metrics.",
    )
    metrics_token: SecretStr = Field(
        SecretStr(""), description="Bearer token for /metrics of the API and workers. If unset, only loopback may read it."
    )
    retention_max_s: float = Field(
        300.0, gt=0, le=600, description="Maximum seconds of one retention run. The next one continues where it ended."
    )
    abandon_after_s: float = Field(86_400.0, ge=0, description="Seconds without activity until a session is abandoned. 0: never.")
    watchdog_s: float = Field(
        60.0, ge=0, description="Seconds without progress, while turns are pending, after which a worker exits. 0: never."
    )

    # Tool health
    health_every_s: float = Field(300.0, gt=0, description="Seconds between health probes of a tool integration.")
    health_timeout_s: float = Field(5.0, gt=0, description="Seconds until a health probe times out.")
    health_parallel: int = Field(
        300, ge=1, description="Maximum concurrent health probes. At most half of them are for integrations that failed last time."
    )
    health_degraded_after: int = Field(2, ge=1, description="Consecutive failures until an integration is degraded.")
    health_unhealthy_after: int = Field(5, ge=1, description="Consecutive failures until an integration is unhealthy and not used.")
    health_healthy_after: int = Field(2, ge=1, description="Consecutive answers until an integration is healthy again.")

    # Model providers and tools
    model_timeout_s: float = Field(120.0, description="Wall-clock seconds until a model call times out.")
    model_max_bytes: int = Field(8 * 1024 * 1024, description="Maximum size of a model provider's response.")
    tool_timeout_s: float = Field(30.0, description="Wall-clock seconds until a tool request times out, unless the tool sets its own.")
    tool_max_bytes: int = Field(256 * 1024, description="Maximum size of a tool's response.")
    allowed_networks: Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode] = Field(
        (), description="Private networks that tools may reach, as comma-separated CIDRs. Default: only the public internet."
    )
    allowed_ports: Annotated[tuple[int, ...], NoDecode] = Field(
        (80, 443), description="Ports that tools may use, comma-separated. In allowed networks they may use any port."
    )

    # Workers
    worker_concurrency: int = Field(1000, ge=1, description="Maximum concurrent turns per worker process.")
    pool_stuck_exit_s: float = Field(
        30.0,
        ge=0,
        validation_alias="TURNLINE_POOL_STUCK_EXIT_S",  # named in full, so that pydantic's error names the variable
        description="Seconds that a task may ignore its time limit before its worker process exits. 0: never.",
    )
    db_pool_size: int = Field(10, ge=1, description="Maximum database connections per process.")
    db_pooler: bool = Field(
        False, description="True behind a connection pooler in transaction mode: no prepared statements, and the login's own role."
    )

    # Flower
    flower_host: str = Field("127.0.0.1", description="Address that Flower listens on.")
    flower_port: int = Field(5555, description="Port that Flower listens on.")
    flower_basic_auth: SecretStr = Field(SecretStr(""), description="Flower's logins as user:password, comma-separated.")
    flower_read_only: bool = Field(False, description="If true, Flower shows tasks but cannot stop or change anything.")
    flower_url_prefix: str = Field("", description="Path prefix under which a proxy serves Flower, such as ops/flower.")
    flower_db: str = Field("", description="File in which Flower keeps its state over restarts. Default: none.")

    @field_validator("allowed_networks", "allowed_ports", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("database_url", "owner_database_url", "maintenance_database_url")
    @classmethod
    def _postgres(cls, value: str) -> str:
        for prefix in ("postgres://", "postgresql+psycopg://"):
            if value.startswith(prefix):
                value = "postgresql://" + value[len(prefix) :]
        if value and not value.startswith("postgresql://"):
            raise ValueError("must be a Postgres URL, like postgresql://user:password@host:5432/database")
        return value

    @property
    def realtime_url(self) -> str:
        """Redis URL for realtime messages: REDIS_URL, else the broker if it is Redis or Valkey, else "" (clients then poll)."""
        return self.redis_url or (self.broker_url if self.broker_url.startswith(("redis://", "rediss://")) else "")


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """Return the settings of this process, read on first use."""
    return Settings()
