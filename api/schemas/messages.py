"""Messages of customers and people."""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field, StringConstraints, ValidationInfo, field_validator

from api.schemas.common import JsonObject, RequestBody, ResponseBody, checked, example
from api.schemas.events import Event
from engine.enums import Source, Strategy, TurnStatus
from store.conversations.intake import KEY_MAX_LENGTH, TEXT_MAX_BYTES, check_text


class MessageCreate(RequestBody):
    """A message of a customer or of a person of the workspace."""

    model_config = example(text="Is order 41 paid?", message_key="web-7f3a9c", metadata={"page": "/orders/41"})
    text: Annotated[
        str,
        StringConstraints(min_length=1, max_length=TEXT_MAX_BYTES),
        checked(check_text),
        Field(description=f"Not blank, and at most {TEXT_MAX_BYTES} bytes as UTF-8."),
    ]
    message_key: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=KEY_MAX_LENGTH,
            description="Makes repeats safe: a message is accepted once, however often it is sent with the same key and text.",
        ),
    ] = None
    metadata: JsonObject = {}
    source: Annotated[
        Literal[Source.CUSTOMER, Source.HUMAN_AGENT, Source.HUMAN_AGENT_ON_BEHALF_OF_AI_AGENT],
        Field(
            description="human_agent: a person of the workspace writes to the customer as themselves. human_agent_on_behalf_of_ai_agent: "
            "a person writes in the agent's name. Both become an agent_message at once and open no turn."
        ),
    ] = Source.CUSTOMER
    strategy: Annotated[Strategy | None, Field(description="Defaults to the agent's. Only for a customer's message.")] = None

    @field_validator("strategy")
    @classmethod
    def _only_for_customers(cls, strategy: Strategy | None, info: ValidationInfo) -> Strategy | None:
        if strategy is not None and info.data.get("source", Source.CUSTOMER) != Source.CUSTOMER:
            raise ValueError("A person's message opens no turn, so it takes no strategy.")
        return strategy


class TurnReference(ResponseBody):
    """A turn and its status."""

    id: UUID
    status: TurnStatus


class Accepted(ResponseBody):
    """An accepted message. `turn` is null in mode manual, and for a person's message."""

    event: Event
    turn: TurnReference | None
