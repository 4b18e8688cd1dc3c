"""The API reference at /docs: Swagger UI under a strict Content-Security-Policy."""

from __future__ import annotations

import re
from hashlib import sha256
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from api.docs import ASSETS, SWAGGER_UI
from tests.support.api_server import Service
from tests.support.browser import ABSENT, Page, browsing, chromium

RECORD_VIOLATIONS = """
window.violations = [];
document.addEventListener("securitypolicyviolation", event => violations.push(`${event.violatedDirective} ${event.blockedURI}`));
"""
REQUESTED_URLS = 'performance.getEntriesByType("resource").map(entry => entry.name)'


def get(service: Service, path: str) -> httpx.Response:
    return httpx.get(service.url + path, trust_env=False)


async def evaluate(page: Page, expression: str) -> Any:
    result = await page.call("Runtime.evaluate", expression=expression, returnByValue=True)
    return result["result"].get("value")


@pytest.mark.parametrize("path", ["/docs", *(f"/docs/{name}" for name in ASSETS)])
def test_page_and_assets_need_no_key_and_carry_the_policy(service: Service, path: str):
    response = get(service, path)

    assert response.status_code == 200
    policy = dict(part.strip().split(" ", 1) for part in response.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert ("immutable" in response.headers["cache-control"]) == (SWAGGER_UI.name in path)
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"


def test_other_files_are_not_served(service: Service):
    for path in ("/docs/page.html", "/docs/LICENSE", "/docs/..%2F..%2Fapp.py", f"/docs/{SWAGGER_UI.name}/LICENSE", "/docs/"):
        assert get(service, path).status_code == 404, path


def test_vendored_files_are_the_ones_listed_in_their_readme():
    listed = dict(re.findall(r"`(swagger-ui[\w.-]+)` \| `([0-9a-f]{64})`", (SWAGGER_UI / "README.md").read_text()))

    assert SWAGGER_UI.name.endswith(re.findall(r"# swagger-ui-dist (\S+)", (SWAGGER_UI / "README.md").read_text())[0])
    assert (SWAGGER_UI / "LICENSE").exists()
    for name in ("swagger-ui-bundle.js", "swagger-ui.css"):
        assert sha256((SWAGGER_UI / name).read_bytes()).hexdigest() == listed[name]


@pytest.mark.skipif(chromium() is None, reason=ABSENT)
async def test_page_renders_and_calls_operations_without_violating_its_policy(service: Service):
    async with browsing({}) as page:
        await page.call("Page.addScriptToEvaluateOnNewDocument", source=RECORD_VIOLATIONS)
        await page.open(f"{service.url}/docs")
        await page.says("Turnline", "/v1/agents/{agent_id}", "Post Message", "/v1/sessions/{session_id}/stream", "Authorize")
        await evaluate(page, 'document.querySelector("#operations-sessions-post_message .opblock-summary-control").click()')
        await page.says("Accept a message of a customer", "message_key", "Retry-After")
        await evaluate(page, 'document.querySelector("#operations-health-healthz .opblock-summary-control").click()')
        await page.says("Answer if the process is alive.", "Try it out")
        await evaluate(page, 'document.querySelector("#operations-health-healthz .try-out__btn").click()')
        await page.says("Execute")
        await evaluate(page, 'document.querySelector("#operations-health-healthz .execute").click()')
        await page.says("Response body", '"status": "ok"')

        assert await evaluate(page, "violations") == []
        assert page.complaints == []
        urls = await evaluate(page, REQUESTED_URLS)
        assert {urlsplit(url).path for url in urls} == {*(f"/docs/{name}" for name in ASSETS), "/openapi.json", "/healthz"}
        assert {f"{parts.scheme}://{parts.netloc}" for parts in map(urlsplit, urls)} == {service.url}


@pytest.mark.skipif(chromium() is None, reason=ABSENT)
async def test_the_policy_refuses_inline_scripts_and_other_hosts(service: Service):
    async with browsing({}) as page:
        await page.call("Page.addScriptToEvaluateOnNewDocument", source=RECORD_VIOLATIONS)
        await page.open(f"{service.url}/docs")
        await page.says("List Agents")
        await evaluate(page, 'document.body.setAttribute("onclick", "window.ran = true"); document.body.click()')
        await evaluate(page, 'fetch("http://127.0.0.2:9/").catch(() => {})')

        assert await evaluate(page, "window.ran") is None
        assert sorted(await evaluate(page, "violations")) == ["connect-src http://127.0.0.2:9/", "script-src-attr inline"]


def test_operations_have_unique_ids_descriptions_and_tags(service: Service):
    described = get(service, "/openapi.json").json()
    operations = [operation for methods in described["paths"].values() for operation in methods.values()]

    ids = [operation["operationId"] for operation in operations]
    assert len(ids) == len(set(ids))
    assert all(operation.get("description") and operation.get("tags") for operation in operations)
