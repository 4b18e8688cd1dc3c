"""Sessions, and what can be done to them."""

from __future__ import annotations

from datetime import datetime
from functools import lru_cache
from typing import Annotated, Any
from uuid import UUID
from zoneinfo import available_timezones

from pydantic import Field, StringConstraints

from api.schemas.common import JsonObject, Money, Paged, RequestBody, ResponseBody, Storable, checked, example
from engine.enums import ModelProvider, SessionMode, SessionStatus, SessionType
from engine.errors import Rejected

Tag = Annotated[str, StringConstraints(min_length=1, max_length=50, pattern=r"\S")]


@lru_cache(maxsize=1)
def _timezones() -> frozenset[str]:
    return frozenset(available_timezones())


def _check_timezone(value: str) -> None:
    if value not in _timezones():
        raise Rejected("Not a time zone of the IANA database, like Europe/Berlin.")


class SessionCreate(RequestBody):
    """A new session with an agent."""

    model_config = example(agent_id="01975e2e-7d5b-7c3a-9f3e-5b1f6c2a9d10", customer_id="c-1041", title="Order 41", locale="en")
    agent_id: UUID
    user_id: UUID | None = None
    customer_id: Annotated[str, Field(max_length=100)] | None = None
    title: Annotated[str, Field(max_length=200)] | None = None
    session_type: SessionType = SessionType.CONVERSATION
    locale: Annotated[str, StringConstraints(pattern=r"^[a-z]{2}(-[A-Z]{2})?$"), Field(examples=["en", "pt-BR"])] = "en"
    timezone: Annotated[str, StringConstraints(min_length=1, max_length=50), checked(_check_timezone)] = "UTC"
    metadata: JsonObject = {}
    variables: JsonObject = {}
    tags: Annotated[list[Tag], Field(max_length=20)] = []
    mode: Annotated[
        SessionMode,
        Field(description="auto: the agent answers. manual: a person answers. paused: messages open turns, which wait."),
    ] = SessionMode.AUTO


class SessionEnd(RequestBody):
    """The reason for ending a session."""

    reason: Annotated[str, Field(max_length=500)] | None = None


class Hold(RequestBody):
    """The reason for a legal hold."""

    reason: Annotated[str | None, Field(max_length=2000), Storable] = None


class Satisfaction(RequestBody):
    """The customer's satisfaction."""

    score: Annotated[int, Field(strict=True, ge=1, le=5, description="From 1, not at all satisfied, to 5.")]


class ModeChange(RequestBody):
    """The new mode of a session."""

    model_config = example(mode="manual")
    mode: Annotated[
        SessionMode,
        Field(
            description="auto: the agent answers, and waiting turns run. manual: a person answers; open turns end, and messages open "
            "none. paused: messages open turns, which wait; a running turn parks when its call in flight has been answered."
        ),
    ]


class SessionAgent(ResponseBody):
    """A summary of a session's agent."""

    id: UUID
    name: str
    model_provider: ModelProvider
    model_name: str


class Session(ResponseBody):
    """A session and its counters, which equal a recount of its log and its model calls."""

    id: UUID
    agent_id: UUID
    agent: SessionAgent
    user_id: UUID | None
    customer_id: str | None
    mode: SessionMode
    status: SessionStatus
    title: str | None
    metadata: dict[str, Any]
    variables: dict[str, Any]
    tags: list[str]
    session_type: SessionType
    locale: str
    timezone: str
    event_count: int
    message_count: int
    tokens_used: int
    input_tokens: int
    cached_input_tokens: int
    cache_write_tokens: int
    output_tokens: int
    reasoning_tokens: int
    cost_usd: Money
    unpriced_calls: int
    unknown_calls: int
    started_at: datetime
    last_activity_at: datetime
    ended_at: datetime | None
    satisfaction_score: Annotated[int | None, Field(description="From 1 to 5, as set with `PUT …/satisfaction`.")]
    quarantined_at: Annotated[
        datetime | None, Field(description="Since then none of its turns run, because three in a row died; see `POST …/release`.")
    ]
    held_at: Annotated[datetime | None, Field(description="The time its legal hold was set; it is not deleted until the hold is removed.")]
    held_by: str | None
    hold_reason: str | None
    created_at: datetime
    updated_at: datetime


class Sessions(Paged):
    """Sessions, newest first."""

    items: list[Session]
