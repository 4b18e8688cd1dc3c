"""Analytics over HTTP equal a recount, whether or not the rows have been rolled up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import pytest

from tests.support import factories
from tests.support.activity import Activity
from tests.support.api_server import Service, Tenant
from tests.support.busy_agent import FIRST, ZONE, busy_agent, roll_up
from tests.support.recount import NIL, day, recount


@pytest.fixture
def busy(service: Service, acme: Tenant) -> tuple[Tenant, str]:
    return acme, busy_agent(service, acme)


def counted(service: Service, agent: str, place: Callable[[datetime], Any]) -> tuple[dict[Any, Any], ...]:
    """Return a recount of one agent, without its id in the keys."""
    return tuple({key[1:]: sums for key, sums in one.items() if key[0] == UUID(agent)} for one in recount(service.database_url, place))


def test_totals_of_an_agent_equal_a_recount(service: Service, busy: tuple[Tenant, str]):
    acme, agent = busy
    agents, models, tools = counted(service, agent, lambda at: 0)
    (sums,) = agents.values()

    for _ in range(2):  # half of it rolled up, then all of it
        found = acme.call("GET", f"/v1/agents/{agent}/analytics", 200)
        assert (found["period"], found["timezone"], found["agent"]["id"]) == ("all", ZONE, agent)
        assert found["metrics"]["session_count"] == sums["sessions_started"]
        assert found["metrics"]["message_count"] == sums["messages"]
        assert found["metrics"]["average_response_time"] == pytest.approx(float(sums["response_ms"] / sums["turns_done"]))
        assert found["metrics"]["satisfaction_score"] == pytest.approx(float(sums["cohort_satisfaction"] / sums["cohort_rated"]))
        assert Decimal(found["metrics"]["cost"]) == sum(one["cost_usd"] for one in models.values() if "cost_usd" in one)
        assert Decimal(found["metrics"]["cost"]) == sums["cohort_cost_usd"]
        assert found["session_stats"]["active_sessions"] == sums["active_sessions"]
        assert found["session_stats"]["avg_message_count"] == pytest.approx(float(sums["cohort_messages"] / sums["sessions_started"]))
        assert found["session_stats"]["completion_rate"] == pytest.approx(float(100 * sums["cohort_completed"] / sums["sessions_started"]))
        assert found["turns"] == {status: sums.get(f"turns_{status}", 0) for status in ("done", "failed", "dead", "cancelled")}
        assert found["response_time"]["count"] == sum(sums["response_times"].values())
        assert {one["model"]: one["calls"] for one in found["model_stats"]} == {key[2]: one["calls"] for key, one in models.items()}
        assert found["tokens"]["input"] == sum(one["input_tokens"] for one in models.values())
        used = {UUID(one["tool_id"]) if one["tool_id"] else NIL: one for one in found["tool_stats"]}
        assert {tool: one["succeeded"] + one["failed"] + one["unknown"] + one["denied"] for tool, one in used.items()} == {
            key[1]: one["calls"] for key, one in tools.items()
        }
        assert {one["tool_name"] for one in found["tool_stats"]} == {"lookup", None}
        roll_up(service)


def test_days_and_ranges_of_days_equal_a_recount(service: Service, busy: tuple[Tenant, str]):
    acme, agent = busy
    agents, models, _ = counted(service, agent, day(ZONE))
    days = sorted({key[0] for key in agents} | {key[0] for key in models})

    for _ in range(2):
        found = acme.call("GET", f"/v1/agents/{agent}/performance", 200, params={"from": str(days[0]), "to": str(days[-1])})
        assert [one["day"] for one in found["items"]] == [str(one) for one in days]
        for one in found["items"]:
            sums = agents.get((date.fromisoformat(one["day"]),), {})
            assert one["session_count"] == sums.get("sessions_started", 0)
            assert Decimal(one["total_cost"]) == sums.get("cohort_cost_usd", 0)
            assert one["message_count"] == sums.get("messages", 0)
            assert one["turns"]["done"] == sums.get("turns_done", 0)
            if one["session_count"]:
                assert one["completion_rate"] == pytest.approx(float(100 * sums.get("cohort_completed", 0) / sums["sessions_started"]))
                assert one["avg_message_count"] == pytest.approx(float(sums.get("cohort_messages", 0) / sums["sessions_started"]))
            else:
                assert one["completion_rate"] is None
            spent = sum(model.get("cost_usd", Decimal(0)) for key, model in models.items() if str(key[0]) == one["day"])
            assert Decimal(one["cost"]) == spent

        some = acme.call("GET", f"/v1/agents/{agent}/analytics", 200, params={"from": str(days[1]), "to": str(days[2])})
        assert some["metrics"]["session_count"] == sum(one["session_count"] for one in found["items"][1:3])
        assert Decimal(some["metrics"]["cost"]) == sum(Decimal(one["cost"]) for one in found["items"][1:3])
        roll_up(service)


def test_hours_equal_a_recount(service: Service, busy: tuple[Tenant, str]):
    """The zone's hours start at half past the hours of UTC."""
    acme, agent = busy
    zone = ZoneInfo(ZONE)

    def hour(at: datetime) -> datetime:
        return at.astimezone(zone).replace(minute=0, second=0, microsecond=0)

    agents, models, _ = counted(service, agent, hour)
    days = {"from": "2026-03-05", "to": "2026-03-31"}

    for _ in range(2):
        found = acme.call("GET", f"/v1/agents/{agent}/performance", 200, params=days | {"by": "hour"})
        assert [datetime.fromisoformat(one["hour"]) for one in found["items"]] == sorted(
            {key[0] for key in agents} | {key[0] for key in models}
        )
        for one in found["items"]:
            at = datetime.fromisoformat(one["hour"]).astimezone(zone)
            sums = agents.get((at,), {})
            assert one["day"] == str(at.date())
            assert one["message_count"] == sums.get("messages", 0)
            assert one["turns"]["done"] == sums.get("turns_done", 0)
            assert Decimal(one["cost"]) == sum(model.get("cost_usd", Decimal(0)) for key, model in models.items() if key[0] == at)
        by_day = acme.call("GET", f"/v1/agents/{agent}/performance", 200, params=days)["items"]
        assert sum(one["session_count"] for one in found["items"]) == sum(one["session_count"] for one in by_day)
        roll_up(service)


def test_workspace_equals_a_recount_including_deleted_agents(service: Service, busy: tuple[Tenant, str], other: Tenant):
    acme, agent = busy
    gone = acme.agent(name="Gone")["id"]
    activity = Activity(service.database_url, [factories.Tenant(acme.workspace_id, UUID(gone))], FIRST, 4, 8)
    for _ in range(100):
        activity.step()
    activity.close()
    acme.call("DELETE", f"/v1/agents/{gone}", 204)
    days = {"from": "2026-03-01", "to": "2026-03-31"}

    for zone in (ZONE, ZONE, "America/St_Johns"):  # half rolled up, all rolled up, and before the days of another zone are rolled up
        service.sql("UPDATE workspaces SET timezone = %s WHERE id = %s", zone, acme.workspace_id)
        agents, models, tools = recount(service.database_url, day(zone))
        agents, models, tools = (
            {key: sums for key, sums in one.items() if str(key[0]) in (agent, gone)} for one in (agents, models, tools)
        )
        whole, performance = acme.call("GET", "/v1/analytics", 200), acme.call("GET", "/v1/performance", 200, params=days)
        assert (whole["timezone"], performance["timezone"], "agent" in whole) == (zone, zone, False)
        assert whole["metrics"]["session_count"] == sum(sums.get("sessions_started", 0) for sums in agents.values())
        assert whole["response_time"]["count"] == sum(sum(sums.get("response_times", {}).values()) for sums in agents.values())
        assert {(one["provider"], one["model"]): one["calls"] for one in whole["model_stats"]} == summed(models, "calls", 2)
        assert Decimal(whole["metrics"]["cost"]) == sum(sums.get("cost_usd", Decimal(0)) for sums in models.values())
        assert {UUID(one["tool_id"] or str(NIL)): one["succeeded"] for one in whole["tool_stats"]} == {
            tool: count for (tool,), count in summed(tools, "succeeded_calls", 2).items()
        }
        found = {one["day"]: one for one in performance["items"]}
        for name, column in (("session_count", "sessions_started"), ("message_count", "messages")):
            expected = {str(place): count for (place,), count in summed(agents, column, 1, 2).items() if count}
            assert {at: one[name] for at, one in found.items() if one[name]} == expected
        spent = {str(place): cost for (place,), cost in summed(models, "cost_usd", 1, 2).items() if cost}
        assert {at: Decimal(one["cost"]) for at, one in found.items() if Decimal(one["cost"])} == spent
        some = acme.call("GET", "/v1/analytics", 200, params={"from": "2026-03-07", "to": "2026-03-08"})
        assert some["metrics"]["session_count"] == sum(found[at]["session_count"] for at in ("2026-03-07", "2026-03-08"))
        by_hour = acme.call("GET", "/v1/performance", 200, params=days | {"by": "hour"})["items"]
        assert sum(one["session_count"] for one in by_hour) == whole["metrics"]["session_count"]
        roll_up(service)

    assert other.call("GET", "/v1/analytics", 200)["metrics"]["session_count"] == 0
    assert other.call("GET", "/v1/performance", 200, params=days)["items"] == []


def summed(counted: dict[Any, Any], column: str, first: int, last: int | None = None) -> dict[Any, Any]:
    """Return sums over all agents, by a part of the key."""
    sums: Counter[Any] = Counter()
    for key, one in counted.items():
        sums[key[first:last]] += one.get(column, 0)
    return dict(sums)


def test_agents_are_listed_with_stats(service: Service, busy: tuple[Tenant, str]):
    acme, agent = busy
    idle = acme.agent(name="Idle", tool_ids=[acme.tool("other")["id"]])
    (sums,) = counted(service, agent, lambda at: 0)[0].values()

    listed = {one["id"]: one for one in acme.call("GET", "/v1/agents?with=stats", 200)["items"]}

    assert listed[agent]["active_sessions"] == sums["active_sessions"]
    assert listed[agent]["total_sessions"] == sums["sessions_started"]
    assert Decimal(listed[agent]["total_cost"]) == sums["cohort_cost_usd"]
    assert listed[agent]["recent_activity"] == listed[agent]["last_active_at"]
    assert (listed[idle["id"]]["active_sessions"], listed[idle["id"]]["recent_activity"], listed[idle["id"]]["tool_count"]) == (0, None, 1)
    assert "active_sessions" not in acme.call("GET", "/v1/agents", 200)["items"][0]


def test_changed_time_zone_changes_the_days(service: Service, busy: tuple[Tenant, str]):
    acme, agent = busy
    roll_up(service)
    service.sql("UPDATE workspaces SET timezone = 'America/St_Johns' WHERE id = %s", acme.workspace_id)
    agents, _, _ = counted(service, agent, day("America/St_Johns"))

    for _ in range(2):  # before and after the job has computed the new days
        found = acme.call("GET", f"/v1/agents/{agent}/performance", 200, params={"from": "2026-03-01", "to": "2026-03-31"})
        assert found["timezone"] == "America/St_Johns"
        started = {one["day"]: one["session_count"] for one in found["items"] if one["session_count"]}
        assert started == {str(key[0]): one["sessions_started"] for key, one in agents.items() if "sessions_started" in one}
        roll_up(service)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("from=2026-03-02&to=2026-03-01", "before"),
        ("from=2026-01-01&to=2027-01-02", "366"),
        ("from=2026-13-01&to=2026-03-01", "from"),
        ("from=yesterday&to=2026-03-01", "from"),
        ("from=2099-03-01", "before"),
    ],
)
def test_invalid_days_return_422(acme: Tenant, query: str, words: str):
    agent = acme.agent()["id"]
    for what in ("performance", "analytics"):
        problem = acme.call("GET", f"/v1/agents/{agent}/{what}?{query}", 422)
        assert problem["code"] == "VALIDATION_ERROR"
        assert words in str(problem["errors"]) + problem["detail"]


@pytest.mark.parametrize(("query", "words"), [("by=week", "by"), ("from=2026-03-01&to=2026-04-01&by=hour", "31 days by hour")])
def test_invalid_steps_return_422(acme: Tenant, query: str, words: str):
    problem = acme.call("GET", f"/v1/agents/{acme.agent()['id']}/performance?{query}", 422)
    assert words in str(problem["errors"]) + problem["detail"]


def test_agent_of_another_workspace_returns_404(service: Service, busy: tuple[Tenant, str], other: Tenant):
    _, agent = busy
    for name in (agent, str(uuid4())):
        for path in ("analytics", "performance?from=2026-03-01&to=2026-03-02"):
            assert other.call("GET", f"/v1/agents/{name}/{path}", 404)["code"] == "NOT_FOUND"
    assert other.call("GET", "/v1/agents?with=stats", 200)["items"] == []


def test_days_default_to_the_last_thirty(acme: Tenant):
    agent = acme.agent()["id"]
    acme.session(agent_id=agent)

    found = acme.call("GET", f"/v1/agents/{agent}/performance", 200)
    first, last = map(date.fromisoformat, found["period"].split("/"))

    assert (last - first).days == 29
    assert [(one["day"], one["session_count"]) for one in found["items"]] == [(str(last), 1)]
    assert acme.call("GET", f"/v1/agents/{agent}/performance?to=2026-03-30", 200)["period"] == "2026-03-01/2026-03-30"
    assert acme.call("GET", f"/v1/agents/{agent}/analytics?to=2026-03-30", 200)["metrics"]["session_count"] == 0


def test_first_and_last_days_of_the_calendar_are_valid(acme: Tenant):
    agent = acme.agent()["id"]
    for days in ("from=0001-01-01&to=0001-01-02", "to=0001-01-02", "from=9999-12-30&to=9999-12-31"):
        assert acme.call("GET", f"/v1/agents/{agent}/performance?{days}", 200)["items"] == []
