"""Pagination: query parameters and responses of every list."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Query

from api.responses import Json
from store.pagination import Page

MAX_OFFSET = 2**31 - 1
AfterOffset = Annotated[int, Query(ge=-1, le=MAX_OFFSET, description="Start after this offset; -1 starts at the beginning.")]


@dataclass(frozen=True, slots=True)
class PageQuery:
    """The requested page of a list."""

    limit: int
    after: str | None
    include_total: bool


async def _page_query(
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query(max_length=100, description="A page's `next_cursor`.")] = None,
    include_total: Annotated[bool, Query(description="Also count the whole list, which is slow.")] = False,
) -> PageQuery:
    return PageQuery(limit, after, include_total)


Paging = Annotated[PageQuery, Depends(_page_query)]


def paged(page: Page) -> Json:
    """Return the response for a page."""
    body = {"items": page.items, "next_cursor": page.next_cursor, "has_more": page.next_cursor is not None}
    return Json(body if page.total_count is None else {**body, "total_count": page.total_count})
