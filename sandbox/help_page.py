"""The help text that `GET /` and `--help` show: addresses, markers, faults and tools."""

from __future__ import annotations

from sandbox.faults import FAULTS
from sandbox.markers import MARKERS
from sandbox.tools import TOOLS


def text() -> str:
    """Return the help text."""
    return "\n".join(
        [
            "A fake model provider and tool server. The same request gets the same answer.",
            "",
            "Addresses",
            *_rows(
                {
                    "POST /v1/chat/completions": "the model, streaming or not; any bearer token is accepted",
                    "GET /v1/models": "list of models; any model name is accepted",
                    "POST, GET /tools/NAME": "a tool; honours Idempotency-Key; arguments may include latency_ms and fault",
                    "": "also repeats: true, a repeated key has its effect again; and status_fault, a fault of /status",
                    "GET, POST /tools/N/status": "?key=KEY or Idempotency-Key: status of that call; 200 with done and result, or 404",
                    " ": "?absent=200: 200 with done: false instead of 404",
                    "GET /_sandbox/counts": "counts of requests and effects; ?brief=1 leaves out texts and keys",
                    "GET /_sandbox/asked": "messages of the latest model requests, oldest first; with: their other fields",
                    "POST /_sandbox/reset": "reset all counts",
                }
            ),
            "",
            "Markers in the last user message",
            *_rows(MARKERS),
            "",
            "Faults: [[fault NAME xN]] in a message, X-Sandbox-Fault: NAME in a header, ?fault=NAME in the address",
            *_rows(FAULTS),
            "",
            "Tools; any other name returns its name and arguments",
            *_rows({name: description for name, (description, _) in TOOLS.items()}),
            "",
        ]
    )


def _rows(table: dict[str, str]) -> list[str]:
    return [f"  {name:<26} {description}" for name, description in table.items()]
