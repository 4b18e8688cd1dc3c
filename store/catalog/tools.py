"""Tools and their integrations, as the API shows them. Of secrets only the names are returned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from sqlalchemy import delete as delete_from
from sqlalchemy import select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection
from uuid_utils.compat import uuid7

from engine.errors import Conflict, NotFound, Rejected
from engine.tools.http_config import check_configuration, check_effect
from models import ToolIntegrationRow, ToolRow
from store import pagination
from store.encryption import SecretBox

WIRE = (
    ToolRow.id,
    ToolRow.name,
    ToolRow.display_name,
    ToolRow.description,
    ToolRow.tool_type,
    ToolRow.parameters,
    ToolRow.return_schema,
    ToolRow.usage_guidelines,
    ToolRow.error_handling,
    ToolRow.effect,
    ToolRow.enabled,
    ToolRow.use_count,
    ToolRow.success_rate,
    ToolRow.last_used_at,
    ToolRow.created_at,
    ToolRow.updated_at,
)
INTEGRATION = (
    ToolIntegrationRow.id,
    ToolIntegrationRow.tool_id,
    ToolIntegrationRow.integration_type,
    ToolIntegrationRow.target_id,
    ToolIntegrationRow.configuration,
    ToolIntegrationRow.secrets,
    ToolIntegrationRow.parameter_mapping,
    ToolIntegrationRow.response_mapping,
    ToolIntegrationRow.enabled,
    ToolIntegrationRow.priority,
    ToolIntegrationRow.health_status,
    ToolIntegrationRow.last_health_check,
    ToolIntegrationRow.error_count,
    ToolIntegrationRow.last_error,
    ToolIntegrationRow.created_at,
    ToolIntegrationRow.updated_at,
)
MAX_INTEGRATIONS = 20
MAX_SECRETS = 20


async def create(db: AsyncConnection, workspace_id: UUID, values: Mapping[str, Any]) -> dict[str, Any]:
    """Create a tool and return it. Raises Conflict if its name is taken."""
    row = insert(ToolRow).values(workspace_id=workspace_id, **values).on_conflict_do_nothing().returning(*WIRE)
    tool = (await db.execute(row)).mappings().one_or_none()
    if tool is None:
        raise Conflict("the workspace has a tool of this name already")
    return dict(tool)


async def get(db: AsyncConnection, tool_id: UUID) -> dict[str, Any]:
    """Return the tool. Raises NotFound."""
    row = (await db.execute(select(*WIRE).where(ToolRow.id == tool_id))).mappings().one_or_none()
    if row is None:
        raise NotFound("no such tool")
    return dict(row)


async def page(db: AsyncConnection, *, limit: int = 20, after: str | None = None, total: bool = False) -> pagination.Page:
    """Return a page of the workspace's tools, the newest first."""
    return await pagination.read(db, select(*WIRE), ToolRow, limit=limit, after=after, total=total)


async def change(db: AsyncConnection, tool_id: UUID, values: Mapping[str, Any]) -> dict[str, Any]:
    """Change some of the tool's fields and return it.

    Raises:
        NotFound: the workspace has no such tool.
        Conflict: the new name is taken.
        Rejected: it becomes queryable, and an enabled integration does not say how to ask.
    """
    if not values:
        return await get(db, tool_id)
    try:
        changed = await db.execute(update(ToolRow).where(ToolRow.id == tool_id).values(**values).returning(*WIRE))
    except IntegrityError:
        raise Conflict("the workspace has a tool of this name already") from None
    row = changed.mappings().one_or_none()
    if row is None:
        raise NotFound("no such tool")
    if "effect" in values:
        # The row is locked by now; a transaction that adds or changes an integration waits for it.
        mapped = select(ToolIntegrationRow.configuration).where(ToolIntegrationRow.tool_id == tool_id, ToolIntegrationRow.enabled)
        for configuration in await db.scalars(mapped):
            check_effect(values["effect"], configuration)
    return dict(row)


async def integrations_of(db: AsyncConnection, tool_id: UUID) -> list[dict[str, Any]]:
    """Return the tool's integrations in the order in which they are tried. Raises NotFound."""
    await get(db, tool_id)
    query = (
        select(*INTEGRATION)
        .where(ToolIntegrationRow.tool_id == tool_id)
        .order_by(ToolIntegrationRow.priority.desc(), ToolIntegrationRow.created_at)
    )
    return [_without_ciphertexts(row) for row in (await db.execute(query)).mappings()]


async def integrate(
    db: AsyncConnection, workspace_id: UUID, tool_id: UUID, values: Mapping[str, Any], secrets: Mapping[str, str], box: SecretBox
) -> dict[str, Any]:
    """Add an integration to the tool, with `secrets` encrypted, and return it.

    Raises:
        NotFound: the workspace has no such tool.
        Conflict: it is mapped to the same target already.
        Rejected: the configuration is not one, or names a secret that is not given, or lacks what the tool's effect needs; no key is
            configured to seal secrets with.
    """
    # The tool's row is locked, so that the limit of integrations holds when two are added at once.
    effect = await _held(db, tool_id)
    if effect is None:
        raise NotFound("no such tool")
    count = len((await db.scalars(select(ToolIntegrationRow.id).where(ToolIntegrationRow.tool_id == tool_id))).all())
    if count >= MAX_INTEGRATIONS:
        raise Conflict(f"a tool has at most {MAX_INTEGRATIONS} integrations")
    check_configuration(values["configuration"], secrets.keys())
    if values.get("enabled", True):
        check_effect(effect, values["configuration"])
    integration_id = uuid7()
    row = (
        insert(ToolIntegrationRow)
        .values(
            id=integration_id,
            workspace_id=workspace_id,
            tool_id=tool_id,
            secrets={name: box.seal(workspace_id, integration_id, name, plain) for name, plain in secrets.items()},
            **values,
        )
        .on_conflict_do_nothing()
        .returning(*INTEGRATION)
    )
    made = (await db.execute(row)).mappings().one_or_none()
    if made is None:
        raise Conflict("the tool is mapped to this target already")
    return _without_ciphertexts(made)


async def change_integration(
    db: AsyncConnection,
    workspace_id: UUID,
    tool_id: UUID,
    integration_id: UUID,
    values: Mapping[str, Any],
    secrets: Mapping[str, str | None],
    box: SecretBox,
) -> dict[str, Any]:
    """Change some of an integration's fields and return it. `secrets` replaces those it names; a null removes one.

    Raises:
        NotFound: the tool has no such integration.
        Conflict: the tool is mapped to the new target already.
        Rejected: as for `integrate`.
    """
    effect = await _held(db, tool_id)
    one = (ToolIntegrationRow.id == integration_id, ToolIntegrationRow.tool_id == tool_id)
    kept = (await db.execute(select(*INTEGRATION).where(*one).with_for_update(key_share=True))).mappings().one_or_none()
    if effect is None or kept is None:
        raise NotFound("no such integration")
    sealed = {name: text for name, text in kept["secrets"].items() if name not in secrets}
    sealed |= {name: box.seal(workspace_id, integration_id, name, plain) for name, plain in secrets.items() if plain is not None}
    if len(sealed) > MAX_SECRETS:
        raise Rejected(f"An integration has at most {MAX_SECRETS} secrets.")
    configuration = values.get("configuration", kept["configuration"])
    check_configuration(configuration, sealed.keys())
    if values.get("enabled", kept["enabled"]):
        check_effect(effect, configuration)
    if not values and not secrets:
        return _without_ciphertexts(kept)
    asked_anew = {"next_health_check": None} if secrets or "configuration" in values or "enabled" in values else {}
    try:
        changed = await db.execute(
            update(ToolIntegrationRow).where(*one).values(secrets=sealed, **values, **asked_anew).returning(*INTEGRATION)
        )
    except IntegrityError:
        raise Conflict("the tool is mapped to this target already") from None
    return _without_ciphertexts(changed.mappings().one())


async def _held(db: AsyncConnection, tool_id: UUID) -> str | None:
    """Lock the tool's row until commit and return the tool's effect, or None if there is no such tool."""
    effect: str | None = await db.scalar(select(ToolRow.effect).where(ToolRow.id == tool_id).with_for_update(key_share=True))
    return effect


async def remove_integration(db: AsyncConnection, tool_id: UUID, integration_id: UUID) -> None:
    """Delete an integration with its secrets. Raises NotFound."""
    gone = await db.execute(
        delete_from(ToolIntegrationRow).where(ToolIntegrationRow.id == integration_id, ToolIntegrationRow.tool_id == tool_id)
    )
    if not gone.rowcount:
        raise NotFound("no such integration")


def _without_ciphertexts(row: Mapping[Any, Any]) -> dict[str, Any]:
    return {**row, "secrets": {name: {"set": True} for name in row["secrets"]}}
