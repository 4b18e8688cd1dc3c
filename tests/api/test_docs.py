"""The reference page: it reads itself from openapi.json, fetches nothing else, and lets nothing else in."""

from __future__ import annotations

import base64
import re
from hashlib import sha256
from html.parser import HTMLParser

import httpx
import pytest

from api.docs import policy
from tests.support.api_server import Service


class Page(HTMLParser):
    """A page's tags with their attributes, and the texts of its styles and scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[str, list[str]] = {"style": [], "script": []}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.cdata_elem is not None:
            self.inside[self.cdata_elem].append(data)


@pytest.fixture(scope="module")
def answer(service: Service) -> httpx.Response:
    return httpx.get(f"{service.url}/docs", trust_env=False)


def test_it_is_open_to_everybody_and_not_framed_or_guessed_at(answer: httpx.Response):
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]


def test_its_policy_names_its_own_style_and_script_and_no_others(answer: httpx.Response):
    said = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    inside = Page(answer.text).inside

    assert said["default-src"] == "'none'"
    assert said["connect-src"] == "'self'"
    for tag in ("style", "script"):
        digest = base64.b64encode(sha256("".join(inside[tag]).encode()).digest()).decode()
        assert said[f"{tag}-src"] == f"'sha256-{digest}'"


def test_nothing_in_it_comes_from_elsewhere(answer: httpx.Response):
    for tag, attributes in Page(answer.text).tags:
        assert not set(attributes) & {"src", "style", "srcset", "action"}, tag
        assert not [name for name in attributes if name.startswith("on")], tag
        assert attributes.get("href") in (None, "openapi.json"), tag
    assert not re.findall(r"https?://", answer.text)
    assert not re.findall(r"url\(|@import", "".join(Page(answer.text).inside["style"]))


def test_it_makes_no_markup_of_what_it_reads_and_keeps_no_key(answer: httpx.Response):
    script = "".join(Page(answer.text).inside["script"])

    assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|Function\(", script)
    assert not re.findall(r"localStorage|sessionStorage|cookie", script)


def test_what_it_draws_from_is_there(service: Service):
    described = httpx.get(f"{service.url}/openapi.json", trust_env=False).json()
    operations = [about for methods in described["paths"].values() for about in methods.values()]
    names = [about["operationId"] for about in operations]

    assert "/v1/sessions/{session_id}/stream" in described["paths"]
    assert len(names) == len(set(names)), "an operation's id is its place on the page"
    assert all(about.get("description") and about.get("tags") for about in operations)
    assert not set(names) & {"key", "key-form", "filter", "contents", "title", "version", "about", "trouble", "operations", "shapes"}


def test_the_policy_follows_the_page():
    assert policy("<style>a</style><script>b</script>") != policy("<style>a</style><script>c</script>")
