"""`turnline analytics` and `turnline workspace timezone`, as processes."""

from __future__ import annotations

import json
from datetime import datetime
from functools import partial
from pathlib import Path
from uuid import uuid4
from zoneinfo import ZoneInfo

import pytest

from cli.analytics import bar, duration, sparkline
from tests.support.api_server import Service, Tenant
from tests.support.busy_agent import busy_agent
from tests.support.cli import Turnline
from tests.support.cli import turnline as run_turnline


@pytest.fixture
def busy(service: Service, acme: Tenant) -> tuple[Tenant, str]:
    """A workspace, and the id of an agent with much activity in it."""
    return acme, busy_agent(service, acme)


@pytest.fixture
def turnline(service: Service, acme: Tenant, tmp_path: Path) -> Turnline:
    env = {"DATABASE_URL": service.database_url, "TURNLINE_API_URL": service.url, "TURNLINE_API_KEY": acme.api_key}
    return partial(run_turnline, directory=tmp_path, COLUMNS="140", PYTHONIOENCODING="utf-8", **env)


def test_agent_analytics_by_day(turnline: Turnline, busy: tuple[Tenant, str]):
    acme, agent = busy
    days = ("--from", "2026-03-01", "--to", "2026-03-20")
    report = json.loads(turnline("analytics", agent, *days, "--json").stdout)
    performance = acme.call("GET", f"/v1/agents/{agent}/performance?from=2026-03-01&to=2026-03-20", 200)
    assert report["performance"] == performance
    assert report["analytics"]["metrics"]["session_count"] > 0

    result = turnline("analytics", "Ada", *days)

    assert result.returncode == 0, result.stderr
    assert "Ada  2026-03-01 to 2026-03-20, days of Asia/Kolkata" in result.stdout
    assert all(day["day"] in result.stdout for day in performance["items"])
    assert f"${report['analytics']['metrics']['cost']}" in result.stdout
    assert all(text in result.stdout for text in ("gpt-4o-mini", "lookup", "(tools it does not have)", "P99", "█", "without a price"))


def test_workspace_analytics_without_an_agent(turnline: Turnline, busy: tuple[Tenant, str]):
    acme, _ = busy
    days = ("--from", "2026-03-01", "--to", "2026-03-20")
    report = json.loads(turnline("analytics", *days, "--json").stdout)
    assert report["performance"] == acme.call("GET", "/v1/performance?from=2026-03-01&to=2026-03-20", 200)
    assert report["analytics"]["metrics"]["session_count"] > 0

    result = turnline("analytics", *days)

    assert result.returncode == 0, result.stderr
    assert "All agents  2026-03-01 to 2026-03-20, days of Asia/Kolkata" in result.stdout
    assert f"${report['analytics']['metrics']['cost']}" in result.stdout


def test_agent_analytics_by_hour(turnline: Turnline, busy: tuple[Tenant, str]):
    acme, agent = busy
    hours = acme.call("GET", f"/v1/agents/{agent}/performance?from=2026-03-06&to=2026-03-08&by=hour", 200)["items"]

    result = turnline("analytics", "Ada", "--from", "2026-03-06", "--to", "2026-03-08", "--hours")

    assert result.returncode == 0, result.stderr
    shown = [datetime.fromisoformat(one["hour"]).astimezone(ZoneInfo("Asia/Kolkata")) for one in hours]
    assert len(shown) > 3
    assert all(f"{one:%Y-%m-%d %H:00}" in result.stdout for one in shown)


def test_analytics_of_an_idle_agent(turnline: Turnline, acme: Tenant):
    acme.agent(name="Idle")
    result = turnline("analytics", "Idle")
    assert (result.returncode, "0 started, 0 active, - completed" in result.stdout) == (0, True), result.stderr


def test_invalid_arguments_exit_with_a_sentence(turnline: Turnline, acme: Tenant):
    agent = acme.agent()["id"]
    for arguments, message in (
        (["analytics", "Nobody"], "There is no agent named 'Nobody'"),
        (["analytics", agent, "--from", "2026-03-02", "--to", "2026-03-01"], "before"),
        (["workspace", "timezone", str(acme.workspace_id), "Europe/Atlantis"], "is not a time zone"),
        (["workspace", "timezone", str(acme.workspace_id), "EST5EDT"], "'EST5EDT' is not the time zone of a place"),
        (["workspace", "timezone", str(acme.workspace_id), "GMT0"], "'GMT0' is not the time zone of a place"),
        (["workspace", "timezone", str(uuid4())], "There is no workspace"),
    ):
        result = turnline(*arguments)
        assert (result.returncode, message in result.stderr) == (1, True), result.stderr
        assert "Traceback" not in result.stderr


def test_workspace_timezone_is_shown_and_set(turnline: Turnline, acme: Tenant):
    workspace_id = str(acme.workspace_id)
    assert turnline("workspace", "timezone", workspace_id).stdout == "UTC\n"
    assert turnline("workspace", "timezone", workspace_id, "America/St_Johns").stdout == "America/St_Johns\n"
    assert acme.call("GET", f"/v1/agents/{acme.agent()['id']}/performance", 200)["timezone"] == "America/St_Johns"


def test_sparklines_bars_and_durations():
    assert sparkline([1, None, 0, 4, 8]) == "▁  ▄█"
    assert (bar(8, 8, 2), bar(4, 8, 2), bar(1, 8, 2), bar(0, 0)) == ("██", "█", "▎", "")
    assert [duration(ms) for ms in (None, 12, 1500, 90_000, 5_400_000)] == ["", "12 ms", "1.5 s", "1.5 min", "1.5 h"]
