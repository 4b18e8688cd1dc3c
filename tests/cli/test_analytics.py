"""`turnline analytics` and `turnline workspace timezone` as processes."""

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
from tests.support.cli import turnline as run_cli


@pytest.fixture
def busy(service: Service, acme: Tenant) -> tuple[Tenant, str]:
    return acme, busy_agent(service, acme)


@pytest.fixture
def turnline(service: Service, acme: Tenant, tmp_path: Path) -> Turnline:
    """Turnline the command line against the API, as the workspace's admin."""
    given = {"DATABASE_URL": service.database_url, "COLUMNS": "140", "PYTHONIOENCODING": "utf-8"}
    return partial(run_cli, directory=tmp_path, TURNLINE_API_URL=service.url, TURNLINE_API_KEY=acme.api_key, **given)


def test_an_agent_is_drawn_day_by_day(turnline: Turnline, busy: tuple[Tenant, str]):
    acme, agent = busy
    days = ("--from", "2026-03-01", "--to", "2026-03-20")
    told = json.loads(turnline("analytics", agent, *days, "--json").stdout)
    performance = acme.call("GET", f"/v1/agents/{agent}/performance?from=2026-03-01&to=2026-03-20", 200)
    assert told["performance"] == performance
    assert told["analytics"]["metrics"]["session_count"] > 0

    drawn = turnline("analytics", "Ada", *days)

    assert drawn.returncode == 0, drawn.stderr
    assert "Ada  2026-03-01 to 2026-03-20, days of Asia/Kolkata" in drawn.stdout
    assert all(one["day"] in drawn.stdout for one in performance["items"])
    assert f"${told['analytics']['metrics']['cost']}" in drawn.stdout
    assert all(words in drawn.stdout for words in ("gpt-4o-mini", "lookup", "(tools it does not have)", "P99", "█", "without a price"))


def test_a_workspace_is_drawn_without_an_agent(turnline: Turnline, busy: tuple[Tenant, str]):
    acme, _ = busy
    days = ("--from", "2026-03-01", "--to", "2026-03-20")
    told = json.loads(turnline("analytics", *days, "--json").stdout)
    assert told["performance"] == acme.call("GET", "/v1/performance?from=2026-03-01&to=2026-03-20", 200)
    assert told["analytics"]["metrics"]["session_count"] > 0

    drawn = turnline("analytics", *days)

    assert drawn.returncode == 0, drawn.stderr
    assert "All agents  2026-03-01 to 2026-03-20, days of Asia/Kolkata" in drawn.stdout
    assert f"${told['analytics']['metrics']['cost']}" in drawn.stdout


def test_an_agent_is_drawn_hour_by_hour(turnline: Turnline, busy: tuple[Tenant, str]):
    acme, agent = busy
    hours = acme.call("GET", f"/v1/agents/{agent}/performance?from=2026-03-06&to=2026-03-08&by=hour", 200)["items"]

    drawn = turnline("analytics", "Ada", "--from", "2026-03-06", "--to", "2026-03-08", "--hours")

    assert drawn.returncode == 0, drawn.stderr
    shown = [datetime.fromisoformat(one["hour"]).astimezone(ZoneInfo("Asia/Kolkata")) for one in hours]
    assert len(shown) > 3
    assert all(f"{one:%Y-%m-%d %H:00}" in drawn.stdout for one in shown)


def test_an_agent_that_did_nothing_is_drawn_too(turnline: Turnline, acme: Tenant):
    acme.agent(name="Idle")
    drawn = turnline("analytics", "Idle")
    assert (drawn.returncode, "0 started, 0 active, - completed" in drawn.stdout) == (0, True), drawn.stderr


def test_mistakes_end_in_a_sentence(turnline: Turnline, acme: Tenant):
    agent = acme.agent()["id"]
    for arguments, words in (
        (["analytics", "Nobody"], "There is no agent named 'Nobody'"),
        (["analytics", agent, "--from", "2026-03-02", "--to", "2026-03-01"], "before"),
        (["workspace", "timezone", str(acme.workspace_id), "Europe/Atlantis"], "is not a time zone"),
        (["workspace", "timezone", str(acme.workspace_id), "EST5EDT"], "'EST5EDT' is not the time zone of a place"),
        (["workspace", "timezone", str(acme.workspace_id), "GMT0"], "'GMT0' is not the time zone of a place"),
        (["workspace", "timezone", str(uuid4())], "There is no workspace"),
    ):
        done = turnline(*arguments)
        assert (done.returncode, words in done.stderr) == (1, True), done.stderr
        assert "Traceback" not in done.stderr


def test_a_workspace_is_told_its_time_zone(turnline: Turnline, acme: Tenant):
    name = str(acme.workspace_id)
    assert turnline("workspace", "timezone", name).stdout == "UTC\n"
    assert turnline("workspace", "timezone", name, "America/St_Johns").stdout == "America/St_Johns\n"
    assert acme.call("GET", f"/v1/agents/{acme.agent()['id']}/performance", 200)["timezone"] == "America/St_Johns"


def test_lines_and_bars():
    assert sparkline([1, None, 0, 4, 8]) == "▁  ▄█"
    assert (bar(8, 8, 2), bar(4, 8, 2), bar(1, 8, 2), bar(0, 0)) == ("██", "█", "▎", "")
    assert [duration(ms) for ms in (None, 12, 1500, 90_000, 5_400_000)] == ["", "12 ms", "1.5 s", "1.5 min", "1.5 h"]
