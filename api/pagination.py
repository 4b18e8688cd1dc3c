"""The paging that every list has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Query

from api.responses import Json
from store.pagination import Page


@dataclass(frozen=True, slots=True)
class PageQuery:
    """Which page was asked for."""

    limit: int
    after: str | None
    include_total: bool


async def _page_query(
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query(max_length=100, description="A page's `next_cursor`.")] = None,
    include_total: Annotated[bool, Query(description="Count the whole list, which is the slow part.")] = False,
) -> PageQuery:
    return PageQuery(limit, after, include_total)


Paging = Annotated[PageQuery, Depends(_page_query)]


def paged(page: Page) -> Json:
    """A page as an answer."""
    body = {"items": page.items, "next_cursor": page.next_cursor, "has_more": page.next_cursor is not None}
    return Json(body if page.total_count is None else {**body, "total_count": page.total_count})
