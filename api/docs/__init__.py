"""The API reference at /docs: Swagger UI, vendored in api/vendor and served from here, with a strict Content-Security-Policy.

People paste API keys into this page, so it runs only the scripts in `ASSETS` and talks only to its own server.
"""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse

from api.errors import Problem

HERE = Path(__file__).parent
SWAGGER_UI = HERE.parent / "vendor" / "swagger-ui-dist-5.35.0"
ASSETS = {
    "start.js": (HERE / "start.js", "text/javascript"),
    f"{SWAGGER_UI.name}/swagger-ui-bundle.js": (SWAGGER_UI / "swagger-ui-bundle.js", "text/javascript"),
    f"{SWAGGER_UI.name}/swagger-ui.css": (SWAGGER_UI / "swagger-ui.css", "text/css"),
}
# Neither inline code nor eval. `data:` images are the icons in Swagger UI's style sheet.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cache-Control": "no-cache",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
IMMUTABLE = "public, max-age=31536000, immutable"  # for paths that contain a version


def install(app: FastAPI) -> None:
    """Serve the page at /docs and its files below it."""

    @app.get("/docs", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(HERE / "page.html", media_type="text/html", headers=HEADERS)

    @app.get("/docs/{name:path}", include_in_schema=False)
    async def asset(name: str) -> FileResponse:
        if name not in ASSETS:
            raise Problem(404, "There is no endpoint at this path.")
        path, media_type = ASSETS[name]
        cache_control = IMMUTABLE if path.parent == SWAGGER_UI else HEADERS["Cache-Control"]
        return FileResponse(path, media_type=media_type, headers={**HEADERS, "Cache-Control": cache_control})
