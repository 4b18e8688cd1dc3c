"""The documents point to files, headings, make targets and settings that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from settings import Settings
from tests.support.servers import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
PACKAGES = (
    "api",
    "cli",
    "engine",
    "integrations",
    "migrations",
    "models",
    "observability",
    "realtime",
    "sandbox",
    "store",
    "tasks",
    "tests",
    "worker",
)
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def headings(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pages
def test_links_lead_to_an_existing_file_and_heading(page: Path):
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in headings(target), link


@pages
def test_files_named_in_the_text_exist(page: Path):
    """Names with a placeholder in capitals are not checked."""
    for path in re.findall(r"`([a-z_]+(?:/[a-z0-9_.]+)+/?)`", page.read_text()):
        if path.split("/")[0] in PACKAGES:
            assert (ROOT / path).exists(), path


@pages
def test_make_targets_exist(page: Path):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)", page.read_text())) <= targets


def test_every_setting_is_in_the_operations_page():
    listed = (ROOT / "docs" / "operations.md").read_text()
    for name, setting in Settings.model_fields.items():
        alias = setting.validation_alias
        variable = alias if isinstance(alias, str) else f"TURNLINE_{name.upper()}"
        assert f"`{variable}`" in listed, variable
