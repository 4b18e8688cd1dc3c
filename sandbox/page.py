"""The page that lists what the sandbox understands; `GET /` and `--help` show the same."""

from __future__ import annotations

from sandbox.faults import FAULTS
from sandbox.markers import MARKERS
from sandbox.tools import TOOLS


def text() -> str:
    """Return the page as plain text."""
    return "\n".join(
        [
            "A stand-in model vendor and tool server. Its answers are a function of what it is asked.",
            "",
            "Addresses",
            *_rows(
                {
                    "POST /v1/chat/completions": "the model, streaming or not; any bearer key will do",
                    "GET /v1/models": "its models; any name is accepted",
                    "POST, GET /tools/NAME": "a tool; honours Idempotency-Key; latency_ms and fault may be among its arguments",
                    "": "also: repeats, true: a key used again does the work again; status_fault: a fault of what follows",
                    "GET, POST /tools/N/status": "?key=KEY or Idempotency-Key: did that call happen; 200 with done and result, or 404",
                    " ": "?absent=200: 200 with done: false instead of 404",
                    "GET /_sandbox/counts": "what was asked and done so far; ?brief=1 leaves out texts and keys",
                    "GET /_sandbox/asked": "the messages of the latest requests to the model, the latest last; with: the rest of each",
                    "POST /_sandbox/reset": "forget all of it",
                }
            ),
            "",
            "Markers in the last user message",
            *_rows(MARKERS),
            "",
            "Faults: [[fault NAME xN]] in a message, X-Sandbox-Fault: NAME in a header, ?fault=NAME in the address",
            *_rows(FAULTS),
            "",
            "Tools; any other name gives back its name and arguments",
            *_rows({name: told for name, (told, _) in TOOLS.items()}),
            "",
        ]
    )


def _rows(table: dict[str, str]) -> list[str]:
    return [f"  {name:<26} {told}" for name, told in table.items()]
