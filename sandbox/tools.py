"""The tool server: a few tools whose results depend only on their arguments, and whose effects are counted."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sandbox import bad_transport
from sandbox.bad_documents import corrupt_result
from sandbox.connection import Request
from sandbox.counts import MAX_KEYS, Counts
from sandbox.faults import FOREVER, FaultSchedule, parse_fault
from sandbox.replies import Reply, Script, json_reply, script, to_json

SKIES = ("sunny", "cloudy", "rainy", "windy")
RESERVED = ("fault", "latency_ms", "repeats", "status_fault")


class BadCall(ValueError):
    """The tool refuses the call with 422: an argument is missing or has the wrong type."""


def _integer(arguments: dict[str, Any], name: str) -> int:
    value = arguments.get(name)
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadCall(f"{name} must be an integer.")
    return value


def _orders_lookup(arguments: dict[str, Any]) -> dict[str, Any]:
    order = _integer(arguments, "order")
    cents = (12_990 + (order - 41) * 137) % 100_000
    return {"order": order, "paid": order % 2 == 1, "total": f"{cents // 100}.{cents % 100:02d}", "currency": "EUR"}


def _weather(arguments: dict[str, Any]) -> dict[str, Any]:
    city = arguments.get("city")
    if not isinstance(city, str) or not city:
        raise BadCall("city must be a string.")
    code = sum(city.encode())
    return {"city": city, "temperature_c": code % 35, "sky": SKIES[code % 4]}


def _refund(arguments: dict[str, Any]) -> dict[str, Any]:
    amount = arguments.get("amount")
    if isinstance(amount, bool) or not isinstance(amount, int | float):
        raise BadCall("amount must be a number.")
    return {"refunded": True, "order": _integer(arguments, "order"), "amount": f"{amount:.2f}", "currency": "EUR"}


TOOLS: dict[str, tuple[str, Callable[[dict[str, Any]], dict[str, Any]]]] = {
    "orders_lookup": ("{order: integer}; returns paid and total", _orders_lookup),
    "weather": ("{city}; returns temperature and sky", _weather),
    "refund": ("{order: integer, amount: number}; has an effect", _refund),
    "echo": ("any arguments; returns them", lambda arguments: arguments),
}


@dataclass(slots=True)
class ToolServer:
    """Answers tool calls. A repeated Idempotency-Key gets the stored result, and the effect is counted once.

    With the argument `repeats`, a repeated key has its effect again, as on a server that only supports status queries.
    """

    counts: Counts
    faults: FaultSchedule
    latency_s: float
    pace_s: float
    results: OrderedDict[tuple[str, str], tuple[str, str]]
    status_faults: OrderedDict[tuple[str, str], str] = field(default_factory=OrderedDict)

    def reset(self) -> None:
        """Forget all results."""
        self.results.clear()
        self.status_faults.clear()

    def answer(self, name: str, request: Request) -> Script:
        """Return the script that answers one call of the tool `name`."""
        key = request.headers.get("idempotency-key")
        count = self.counts.tool(name)
        count.requests += 1
        by_key = None if key is None else count.key(key)
        if by_key is not None:
            by_key.requests += 1
        try:
            arguments = _arguments(request)
            latency_s = _latency_s(request, arguments, self.latency_s)
            fault = self._fault(name, key, request, arguments)
            if key is not None and arguments.get("status_fault"):
                self._remember(self.status_faults, (name, key), str(arguments["status_fault"]))
            tool_arguments = {field: value for field, value in arguments.items() if field not in RESERVED}
            call_json = to_json(tool_arguments)
            run = TOOLS[name][1] if name in TOOLS else lambda arguments: {"tool": name, "arguments": arguments}
            result = run(tool_arguments)
        except ValueError as problem:
            return script(json_reply({"error": str(problem)}, 422))
        error = None if fault is None else bad_transport.error_status(fault)
        executed = fault in bad_transport.AFTER_WORK or (error is None and fault not in bad_transport.BEFORE_WORK)
        body = to_json(result)
        if executed:
            stored = None if key is None else self.results.get((name, key))
            if stored is not None and stored[0] != call_json:
                return script(json_reply({"error": "This Idempotency-Key was used with other arguments."}, 409))
            if stored is None or _repeats(request, arguments):
                count.effects += 1
                if key is not None and by_key is not None:
                    by_key.effects += 1
                    self._remember(self.results, (name, key), (call_json, body))
            else:
                body = stored[1]
        steps = self._steps(fault, error, body)
        return _after(latency_s, steps) if latency_s else steps

    def _steps(self, fault: str | None, error: Reply | None, body: str) -> Script:
        if error is not None:
            return script(error)
        if fault is None:
            return script(Reply(200, body.encode()))
        return bad_transport.faulty_script(fault, Reply(200, corrupt_result(fault, body).encode()), pace_s=self.pace_s)

    def status(self, name: str, request: Request) -> Script:
        """Return the script that answers a status query: 200 and the result if the call with this key was executed, else 404."""
        key = request.query.get("key") or request.headers.get("idempotency-key")
        if not key:
            return script(json_reply({"error": "The key is missing: send ?key=… or an Idempotency-Key header."}, 422))
        count = self.counts.tool(name)
        count.status_requests += 1
        count.key(key).status_requests += 1
        permanent = request.headers.get("x-sandbox-fault") or request.query.get("fault")
        fault_text = permanent or self.status_faults.get((name, key))
        try:
            faults = [parse_fault(fault_text)] if fault_text else []
        except ValueError as problem:
            return script(json_reply({"error": str(problem)}, 422))
        fault = self.faults.next_fault(("status", name, key), faults, times=FOREVER if permanent else 1) if faults else None
        stored = self.results.get((name, key))
        if stored is None and fault is None:
            absent = 200 if request.query.get("absent") == "200" else 404
            return script(json_reply({"done": False}, absent))
        body = to_json({"done": False}) if stored is None else f'{{"done":true,"result":{stored[1]}}}'
        return self._steps(fault, None if fault is None else bad_transport.error_status(fault), body)

    def _remember(self, results: OrderedDict[tuple[str, str], Any], key: tuple[str, str], value: Any) -> None:
        results[key] = value
        if len(results) > MAX_KEYS:
            results.popitem(last=False)

    def _fault(self, name: str, key: str | None, request: Request, arguments: dict[str, Any]) -> str | None:
        """Return the requested fault. Requested in the arguments it happens once by default, in the URL or a header always."""
        permanent = request.headers.get("x-sandbox-fault") or request.query.get("fault")
        fault_text = permanent or arguments.get("fault")
        if not fault_text:
            return None
        schedule_key = ("tool", name, key if key is not None else to_json(arguments))
        return self.faults.next_fault(schedule_key, [parse_fault(str(fault_text))], times=FOREVER if permanent else 1)


def _arguments(request: Request) -> dict[str, Any]:
    """Return the fields of query and body; numeric strings in the query become numbers."""
    arguments: dict[str, Any] = {name: _typed(value) for name, value in request.query.items() if name not in RESERVED}
    if request.body:
        try:
            body = json.loads(request.body)
        except (ValueError, RecursionError):
            raise BadCall("The body is not JSON.") from None
        if not isinstance(body, dict):
            raise BadCall("The body is not a JSON object.")
        arguments |= body
    return arguments


def _typed(text: str) -> int | float | str:
    for number_type in (int, float):
        try:
            return number_type(text)
        except ValueError:
            continue
    return text


def _latency_s(request: Request, arguments: dict[str, Any], default_s: float) -> float:
    fault_text = request.query.get("latency_ms", arguments.get("latency_ms"))
    try:
        return default_s if fault_text is None else min(3600.0, max(0.0, float(fault_text) / 1000))
    except (TypeError, ValueError):
        raise BadCall("latency_ms must be a number.") from None


def _repeats(request: Request, arguments: dict[str, Any]) -> bool:
    return bool(arguments.get("repeats") or request.query.get("repeats", "0") not in ("", "0"))


def _after(seconds: float, steps: Script) -> Script:
    yield seconds
    yield from steps
