"""One frozen `Settings`, read from the environment once, at start."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AliasChoices, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


class Settings(BaseSettings):
    """What the environment says, checked. Names without a prefix are the ones the ecosystem uses; ours begin with TURNLINE_."""

    model_config = SettingsConfigDict(
        frozen=True,
        env_prefix="TURNLINE_",
        extra="ignore",
        env_ignore_empty=True,
        hide_input_in_errors=True,  # a refused URL may hold a password
    )

    # Where things are
    database_url: str = Field("", validation_alias="DATABASE_URL", description="Postgres, as any login that may become turnline_app.")
    owner_database_url: str = Field("", description="Postgres login for `turnline migrate`, where it differs from DATABASE_URL.")
    maintenance_database_url: str = Field("", description="Postgres login for the sweeper and jobs, where it differs from DATABASE_URL.")
    broker_url: str = Field("", validation_alias="CELERY_BROKER_URL", description="Redis/Valkey (redis://) or RabbitMQ (amqp://).")
    redis_url: str = Field(
        "", validation_alias="REDIS_URL", description="For passing news (streamed tokens). Default: the broker, if it is Redis."
    )
    openai_api_key: SecretStr = Field(SecretStr(""), validation_alias="OPENAI_API_KEY")
    openai_base_url: str = Field("https://api.openai.com/v1", validation_alias="OPENAI_BASE_URL")
    secret_keys: SecretStr = Field(
        SecretStr(""), description="Keys for secrets at rest, comma-separated, 32 bytes base64 each; the first encrypts, all decrypt."
    )
    log_level: str = Field("INFO", validation_alias=AliasChoices("TURNLINE_LOG_LEVEL", "LOG_LEVEL"))

    # `turnline up`: everything on one machine
    home: Path = Field(Path(".turnline"), description="Where `turnline up` keeps data, logs and generated secrets.")
    postgres_port: int = Field(54329, description="Port of the embedded Postgres.")
    valkey_port: int = Field(63799, description="Port of the embedded Valkey.")

    # The API
    api_host: str = "127.0.0.1"
    api_port: int = 8000
    request_max_bytes: int = 256 * 1024
    session_max_open: int = Field(20, ge=0, description="Open turns of one session; a message that would open another is answered 429.")
    workspace_max_open: int = Field(10_000, ge=0, description="The same of one workspace; 0, as in the others: no limit.")
    max_open: int = Field(0, ge=0, description="Turns of all workspaces that wait for a worker or are carried.")
    max_behind_s: float = Field(60.0, ge=0, description="How long a turn may wait for a worker before nobody's messages are taken.")

    # The turn
    turn_lease_s: float = Field(30.0, gt=0, description="How long a claim holds without a heartbeat.")
    turn_heartbeat_s: float = Field(10.0, gt=0)
    turn_max_attempts: int = Field(5, ge=1)
    turn_model_calls: int = Field(8, ge=1, description="Answered model calls of one turn.")
    turn_tool_calls: int = Field(16, ge=0, description="Tool calls of one turn.")
    turn_steps: int = Field(24, ge=1, description="Model calls and tool calls of one turn together.")
    turn_wall_clock_s: float = Field(600.0, gt=0, description="Seconds that workers may spend on one turn; waits do not count.")
    approval_s: float = Field(86_400.0, gt=0, description="How long an approval may be decided before it expires.")
    stop_look_s: float = Field(0.4, gt=0, description="How often a worker asks which of its turns shall stop.")
    workspace_in_flight: int = Field(200, ge=1, description="How many turns of one workspace may be rung or running at a time.")
    history_events: int = Field(400, ge=10, description="How many of a session's latest events a turn's context is read from.")
    sweep_every_s: float = 5.0
    ring_stale_s: float = Field(10.0, description="A rung turn that nobody claimed for this long is rung again.")

    # Looking after it
    audit_max_s: float = Field(60.0, gt=0, le=240, description="How long one audit may look; the next one goes on where it stopped.")
    scheduler: Literal["file", "redbeat"] = Field("file", description="redbeat: several beats, of which one at a time sends; in REDIS_URL.")
    metrics_host: str = Field("127.0.0.1", description="Where workers tell their metrics.")
    metrics_port: int = Field(9810, ge=0, le=65535, description="A worker takes the first free port from here on, of a hundred. 0: none.")
    metrics_token: SecretStr = Field(SecretStr(""), description="Who shows it as a bearer token may read metrics. Without: loopback only.")
    retention_max_s: float = Field(
        300.0, gt=0, le=600, description="How long one clean-up may delete; the next one goes on where it stopped."
    )
    abandon_after_s: float = Field(86_400.0, ge=0, description="How long nothing may happen in a session before it is abandoned. 0: never.")
    watchdog_s: float = Field(60.0, ge=0, description="A worker without progress for this long, while there is work, exits. 0: never.")

    health_every_s: float = Field(300.0, gt=0, description="How often each tool's integration is asked whether it is there.")
    health_timeout_s: float = Field(5.0, gt=0, description="How long one may take to answer that.")
    health_parallel: int = Field(300, ge=1, description="How many are asked at a time, half of them such as failed last time.")
    health_degraded_after: int = Field(2, ge=1, description="Failures in a row until an integration is degraded.")
    health_unhealthy_after: int = Field(5, ge=1, description="The same until it is unhealthy, and not used.")
    health_healthy_after: int = Field(2, ge=1, description="Answers in a row until it is healthy again.")

    # The outside
    model_timeout_s: float = 120.0
    model_max_bytes: int = 8 * 1024 * 1024
    tool_timeout_s: float = 30.0
    tool_max_bytes: int = 256 * 1024
    allowed_networks: Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode] = Field(
        (), description="Networks beyond the public internet that tools may reach, comma-separated CIDRs."
    )
    allowed_ports: Annotated[tuple[int, ...], NoDecode] = Field((80, 443), description="Ports that tools may use outside allowed networks.")

    # The worker
    worker_concurrency: int = Field(1000, ge=1, description="Turns in flight per worker process.")
    pool_stuck_exit_s: float = Field(
        30.0,
        ge=0,
        validation_alias="TURNLINE_POOL_STUCK_EXIT_S",  # named in full, so that pydantic's error names the variable
        description="How long a task may ignore its time limit before its process exits. 0: never.",
    )
    db_pool_size: int = Field(10, ge=1, description="Database connections per process.")
    db_pooler: bool = Field(False, description="A pooler in transaction mode is between: no prepared statements, the login's own role.")

    # The stand-in model vendor that `turnline up` starts where no vendor is configured
    sandbox_port: int = 8900

    # Flower
    flower_host: str = "127.0.0.1"
    flower_port: int = 5555
    flower_basic_auth: SecretStr = Field(SecretStr(""), description="user:password")
    flower_read_only: bool = Field(False, description="Whether Flower shows work and stops none.")
    flower_url_prefix: str = Field("", description="Where a proxy serves it: ops/flower.")
    flower_db: str = Field("", description="A file in which it keeps what it has seen over a restart.")

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
        """Where passing news goes: REDIS_URL, or the broker where that is Redis/Valkey, else "" (no passing news; clients poll)."""
        return self.redis_url or (self.broker_url if self.broker_url.startswith(("redis://", "rediss://")) else "")


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """The process's settings, read on first use."""
    return Settings()
