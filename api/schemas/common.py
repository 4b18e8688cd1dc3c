"""Base classes, and the fields and validators that several nouns share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from engine.errors import Rejected
from engine.safe_json import check_json_value
from store.conversations.intake import METADATA_MAX_BYTES
from store.database import dumps

Value = TypeVar("Value")


class RequestBody(BaseModel):
    """A request's body. Unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")

    def given(self) -> dict[str, Any]:
        """Return the fields that were sent."""
        return self.model_dump(exclude_unset=True)


class ResponseBody(BaseModel):
    """A response's body."""

    model_config = ConfigDict(extra="forbid")


class Paged(ResponseBody):
    """One page of a list. `next_cursor` is null on the last."""

    next_cursor: str | None
    has_more: bool
    total_count: Annotated[int | None, Field(description="Only with `include_total=true`.")] = None


def _without_defaults(schema: dict[str, Any]) -> None:
    for field in schema["properties"].values():
        field.pop("default", None)


PATCH = ConfigDict(json_schema_extra=_without_defaults)  # fields that are left out stay as they are, so they have no default


def example(**fields: Any) -> ConfigDict:
    """Return the configuration of a body with this example."""
    return ConfigDict(json_schema_extra={"examples": [fields]})


def checked(check: Callable[[Value], None]) -> AfterValidator:
    """Return a validator that runs `check` and turns its Rejected into an error with a place."""

    def validate(value: Value) -> Value:
        try:
            check(value)
        except Rejected as error:
            raise ValueError(str(error)) from None
        return value

    return AfterValidator(validate)


def only(*supported: str, what: str) -> AfterValidator:
    """Return a validator that refuses values that are planned and not supported yet."""

    def check(value: str) -> None:
        if value not in supported:
            raise Rejected(f"{what} {value} is not supported yet; use {' or '.join(supported)}.")

    return checked(check)


def _check_size(value: dict[str, Any]) -> None:
    if len(dumps(value).encode()) > METADATA_MAX_BYTES:
        raise Rejected(f"The object is longer than {METADATA_MAX_BYTES} bytes.")


Storable = checked(check_json_value)  # refuses U+0000 and the like in query strings; bodies are checked as a whole
JsonObject = Annotated[dict[str, Any], checked(_check_size), Field(description=f"Any JSON object of at most {METADATA_MAX_BYTES} bytes.")]
Money = Annotated[str, Field(pattern=r"^-?\d+(\.\d+)?$", examples=["0.00021"], description="US dollars.")]
