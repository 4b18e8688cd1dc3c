"""Approvals of tool calls, and decisions about them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import Field, model_validator

from api.schemas.common import JsonObject, Paged, RequestBody, ResponseBody, example
from engine.enums import ApprovalStatus
from store.conversations.approvals import REASON_MAX_LENGTH


class Decision(RequestBody):
    """A person's decision about a tool call. `edited_arguments`, only with an approval, replace the model's."""

    model_config = example(decision="approve", reason="Checked with the warehouse.")
    decision: Literal["approve", "deny"]
    reason: Annotated[
        str | None,
        Field(max_length=REASON_MAX_LENGTH, description="Kept in the session's log; the model is told the reason of a denial."),
    ] = None
    edited_arguments: Annotated[
        JsonObject | None,
        Field(description="All arguments of the call; they must fit the tool's parameters. The model is told that they were edited."),
    ] = None

    @model_validator(mode="after")
    def _edits_are_approved(self) -> Self:
        if self.edited_arguments is not None and self.decision != "approve":
            raise ValueError("edited_arguments can be sent only with an approval.")
        return self


class Approval(ResponseBody):
    """A tool call that waits for a decision, or has been decided."""

    id: UUID
    session_id: UUID
    turn_id: UUID
    tool_call_id: str
    tool_id: UUID | None
    tool_name: str
    arguments: Annotated[dict[str, Any] | None, Field(description="The arguments that the model chose.")]
    status: Annotated[
        ApprovalStatus,
        Field(description="expired: not decided in time. cancelled: the turn ended before a decision. Neither call is made."),
    ]
    requested_at: datetime
    expires_at: Annotated[datetime, Field(description="From then on it cannot be decided.")]
    decided_by: Annotated[str | None, Field(description="The name and prefix of the deciding API key, and its user.")]
    decided_at: datetime | None
    reason: str | None
    edited_arguments: Annotated[dict[str, Any] | None, Field(description="The arguments that are used instead of `arguments`.")]
    used_at: Annotated[datetime | None, Field(description="When the call was made; an approval is valid for one call.")]


class Approvals(Paged):
    """Approvals, newest first."""

    items: list[Approval]
