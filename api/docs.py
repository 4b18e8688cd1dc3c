"""The API's documentation as one page: no scripts, nothing fetched, so that it can be read where there is no network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1c2430;background:#fff}
h1{font-size:1.8rem}h2{margin-top:2.5rem;text-transform:capitalize}
details{border:1px solid #d7dde5;border-radius:6px;margin:.5rem 0;padding:.4rem .8rem}
summary{cursor:pointer}summary b{display:inline-block;min-width:4.2rem}
code,pre{font:14px/1.45 ui-monospace,monospace}pre{background:#f3f5f8;padding:.8rem;border-radius:6px;overflow:auto}
table{border-collapse:collapse;width:100%;margin:.4rem 0}
td,th{text-align:left;vertical-align:top;padding:.25rem .6rem;border-top:1px solid #e4e8ee}
.GET{color:#0b6}.POST{color:#06c}.PUT,.PATCH{color:#a60}.DELETE{color:#c33}.note{color:#5a6675}
@media(prefers-color-scheme:dark){body{background:#14181e;color:#dde3ea}pre{background:#1d232b}details,td,th{border-color:#323b46}}
"""
_HEADERS = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}


def install(app: FastAPI) -> None:
    """Serve the page at /docs."""

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> HTMLResponse:
        return HTMLResponse(page(request.app.openapi()), headers=_HEADERS)


def page(schema: Mapping[str, Any]) -> str:
    """The page for an OpenAPI document."""
    info, schemas = schema["info"], schema["components"]["schemas"]
    by_tag: dict[str, list[str]] = {}
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            by_tag.setdefault(operation.get("tags", ["other"])[0], []).append(_operation(method.upper(), path, operation))
    parts = [f"<h2>{escape(tag)}</h2>{''.join(operations)}" for tag, operations in by_tag.items()]
    shapes = "".join(
        f'<details id="{escape(name)}"><summary><b>{escape(name)}</b></summary>{_shape(schemas[name])}</details>'
        for name in sorted(schemas)
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(info['title'])} API</title><style>{_STYLE}</style></head><body>"
        f"<h1>{escape(info['title'])} API {escape(info['version'])}</h1><p>{escape(info.get('description', ''))}</p>"
        "<p>Send an API key with each request under <code>/v1</code>: <code>Authorization: Bearer tl_…</code>. "
        'For programs: <a href="/openapi.json">/openapi.json</a>.</p>'
        f"{''.join(parts)}<h2>Shapes</h2>{shapes}</body></html>"
    )


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> str:
    parameters = "".join(
        f"<tr><td><code>{escape(item['name'])}</code></td><td>{escape(item['in'])}</td><td>{_type(item['schema'])}</td>"
        f"<td>{escape(item.get('description', ''))}{'' if item.get('required') else ' <span class=note>optional</span>'}</td></tr>"
        for item in operation.get("parameters", ())
    )
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    answers = "".join(
        f"<tr><td>{escape(str(status))}</td><td>{_contents(answer)}</td><td>{escape(answer.get('description', ''))}</td></tr>"
        for status, answer in operation.get("responses", {}).items()
    )
    return (
        f'<details><summary><b class="{method}">{method}</b> <code>{escape(path)}</code></summary>'
        f"<p>{escape(operation.get('description', operation.get('summary', '')))}</p>"
        + (f"<table>{parameters}</table>" if parameters else "")
        + (f"<p>Body: {_type(body)}</p>" if body else "")
        + f"<table>{answers}</table></details>"
    )


def _contents(answer: Mapping[str, Any]) -> str:
    return ", ".join(_type(content.get("schema", {})) for content in answer.get("content", {}).values()) or "–"


def _shape(schema: Mapping[str, Any]) -> str:
    required = set(schema.get("required", ()))
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code></td><td>{_type(field)}</td><td>{escape(field.get('description', ''))}{_limits(field)}"
        f"{'' if name in required else ' <span class=note>optional</span>'}</td></tr>"
        for name, field in schema.get("properties", {}).items()
    )
    told = f"<p>{escape(schema.get('description', ''))}</p>"
    return told + (f"<table>{rows}</table>" if rows else f"<pre>{escape(json.dumps(schema, indent=2))}</pre>")


def _type(schema: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return " or ".join(_type(one) for one in schema[several])
    if "enum" in schema:
        return " | ".join(f"<code>{escape(json.dumps(value))}</code>" for value in schema["enum"])
    if "const" in schema:
        return f"<code>{escape(json.dumps(schema['const']))}</code>"
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    kind = str(schema.get("type", "any"))
    return escape(f"{kind} ({schema['format']})" if "format" in schema else kind)


def _limits(field: Mapping[str, Any]) -> str:
    schemas = [field, *field.get("anyOf", ())]
    names = ("minLength", "maxLength", "minimum", "maximum", "maxItems", "maxProperties", "pattern", "default")
    found = [f"{name} {json.dumps(schema[name])}" for schema in schemas for name in names if name in schema]
    return f' <span class="note">{escape(", ".join(found))}</span>' if found else ""
