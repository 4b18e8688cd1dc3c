"""Messages are refused with Retry-After while too many turns are open, and accepted again afterwards."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.api_process import Served, served
from tests.support.api_server import Service, Tenant, serving
from tests.support.servers import EmbeddedValkey, until

NO_LIMITS = {"session_max_open": 0, "workspace_max_open": 0, "max_open": 0, "max_behind_s": 0}


@pytest.fixture
def address(database_url: str, valkey: EmbeddedValkey) -> dict[str, str]:
    return {"DATABASE_URL": database_url, "CELERY_BROKER_URL": valkey.url}


@contextmanager
def limited(address: dict[str, str], **limits: float) -> Iterator[tuple[Service, Tenant]]:
    """Serve the API with only these limits, and make a tenant."""
    with serving(**address, **(NO_LIMITS | limits)) as service, service.tenant("Acme") as acme:
        yield service, acme
        service.sql("UPDATE turns SET status = 'done', settled_at = now() WHERE status IN ('queued', 'running', 'waiting')")


def post(tenant: Tenant, session_id: str, **fields: Any) -> httpx.Response:
    return tenant.http.post(f"/v1/sessions/{session_id}/messages", json={"text": "Is order 41 paid?", **fields})


def refused(answer: httpx.Response, reason: str) -> bool:
    """Return whether the response is a correct 429; fail on any other refusal."""
    if answer.status_code == 202:
        return False
    problem = answer.json()
    assert (answer.status_code, answer.headers["content-type"]) == (429, "application/problem+json"), answer.text
    assert (problem["status"], problem["code"]) == (429, "RATE_LIMITED")
    assert reason in problem["detail"]
    assert 1 <= int(answer.headers["retry-after"]) <= 90
    return True


def fresh(tenant: Tenant) -> httpx.Response:
    """Return the response to the first message of a new session."""
    return post(tenant, tenant.session()["id"])


def settle(service: Service, turn_id: str) -> None:
    service.sql("UPDATE turns SET status = 'done', settled_at = now() WHERE id = %s", turn_id)


def test_session_is_limited_to_its_maximum_of_open_turns(address: dict[str, str]):
    with limited(address, session_max_open=3) as (service, acme):
        session = acme.session()["id"]
        first = post(acme, session, strategy="enqueue", message_key="k0")
        for _ in range(2):
            assert post(acme, session, strategy="enqueue").status_code == 202

        assert refused(post(acme, session, strategy="enqueue", message_key="k3"), "3 open turns")
        assert len(acme.call("GET", f"/v1/sessions/{session}/events", 200)["events"]) == 3
        again = post(acme, session, strategy="enqueue", message_key="k0")
        assert (again.status_code, again.headers["idempotent-replayed"], again.json()) == (202, "true", first.json())
        assert fresh(acme).status_code == 202

        settle(service, first.json()["turn"]["id"])
        assert post(acme, session, strategy="enqueue", message_key="k3").status_code == 202
        assert refused(post(acme, session, strategy="enqueue"), "3 open turns")


def test_session_limit_is_exact_under_concurrency(address: dict[str, str]):
    with limited(address, session_max_open=3) as (service, acme):
        session = acme.session()["id"]
        with ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(lambda _: post(acme, session, strategy="enqueue").status_code, range(24)))

        assert sorted(set(answers)) == [202, 429]
        assert answers.count(202) == 3
        assert service.sql("SELECT count(*) FROM turns WHERE session_id = %s", session) == [(3,)]


def test_full_workspace_refuses_only_messages_that_open_a_turn(address: dict[str, str]):
    with limited(address, workspace_max_open=3) as (service, acme), service.tenant("Other") as other:
        session = acme.session()["id"]
        first = post(acme, session, message_key="k0")
        assert [fresh(acme).status_code for _ in range(4)] == [202, 202, 429, 429]

        assert refused(post(acme, session, strategy="enqueue"), "The workspace has 3 open turns")
        # Messages that open no turn are accepted: a repeat, one that joins an open turn, one in mode manual.
        again = post(acme, session, message_key="k0")
        assert (again.status_code, again.headers["idempotent-replayed"], again.json()) == (202, "true", first.json())
        joined = post(acme, session)
        assert (joined.status_code, joined.json()["turn"]["id"]) == (202, first.json()["turn"]["id"])
        manual = acme.session()["id"]
        service.sql("UPDATE sessions SET mode = 'manual' WHERE id = %s", manual)
        assert post(acme, manual).status_code == 202
        # Messages that are invalid anyway get their own error.
        assert post(acme, session, message_key="k0", text="other").status_code == 409
        ended = acme.session()["id"]
        acme.call("POST", f"/v1/sessions/{ended}/end", 200)
        assert post(acme, ended).status_code == 409
        assert post(acme, other.session()["id"]).status_code == 404
        # Another workspace is not affected.
        assert fresh(other).status_code == 202

        abandoned = acme.session()["id"]  # the next message makes it active again, and opens a turn
        service.sql("UPDATE sessions SET status = 'abandoned', ended_at = now() WHERE id = %s", abandoned)
        assert refused(post(acme, abandoned), "The workspace has 3 open turns")

        settle(service, first.json()["turn"]["id"])
        until(lambda: not refused(fresh(acme), "3 open turns"))
        assert refused(fresh(acme), "3 open turns")


def test_messages_are_refused_while_turns_wait_too_long_for_a_worker(address: dict[str, str]):
    with limited(address, max_behind_s=1) as (service, acme), service.tenant("Other") as other:
        waiting = fresh(acme).json()["turn"]["id"]

        until(lambda: refused(fresh(other), "for a worker"))
        service.sql("UPDATE turns SET status = 'running', claimed_at = now() WHERE status = 'queued'")
        until(lambda: not refused(fresh(other), "for a worker"))
        assert service.sql("SELECT status FROM turns WHERE id = %s", waiting) == [("running",)]


def test_total_of_open_turns_is_limited(address: dict[str, str]):
    with limited(address, max_open=2) as (service, acme), service.tenant("Other") as other:
        assert (fresh(acme).status_code, fresh(other).status_code) == (202, 202)

        until(lambda: refused(fresh(other), "2 open turns"))
        service.sql("UPDATE turns SET status = 'waiting' WHERE workspace_id = %s", acme.workspace_id)
        until(lambda: not refused(fresh(other), "2 open turns"))


def test_failing_count_accepts_all_messages_and_is_logged_once(address: dict[str, str], caplog: pytest.LogCaptureFixture):
    signature = "backpressure(uuid[], integer, integer, double precision)"
    with limited(address, workspace_max_open=1) as (service, acme), caplog.at_level(logging.INFO, "api.backpressure"):
        assert fresh(acme).status_code == 202
        until(lambda: refused(fresh(acme), "1 open turns"))
        service.sql(f"REVOKE EXECUTE ON FUNCTION {signature} FROM turnline_app")
        try:
            until(lambda: not refused(fresh(acme), "1 open turns"), 30)
            assert fresh(acme).status_code == 202
        finally:
            service.sql(f"GRANT EXECUTE ON FUNCTION {signature} TO turnline_app")
        until(lambda: refused(fresh(acme), "1 open turns"))
    logged = [record.getMessage() for record in caplog.records if record.name == "api.backpressure"]
    assert len([line for line in logged if "failed (InsufficientPrivilege)" in line]) == 1
    assert str(acme.workspace_id) in logged[-1]


def test_two_processes_refuse_and_accept_alike(address: dict[str, str], tmp_path: Path):
    addresses = address["DATABASE_URL"], address["CELERY_BROKER_URL"]
    with (
        limited(address) as (service, acme),
        served(tmp_path / "a", *addresses, TURNLINE_WORKSPACE_MAX_OPEN="2") as one,
        served(tmp_path / "b", *addresses, TURNLINE_WORKSPACE_MAX_OPEN="2") as two,
    ):
        session = acme.session()["id"]

        def accepts(process: Served) -> bool:
            headers = {"Authorization": f"Bearer {acme.api_key}"}
            body = {"text": "Hi", "strategy": "enqueue"}
            answer = httpx.post(f"{process.url}/v1/sessions/{session}/messages", json=body, headers=headers, trust_env=False)
            return not refused(answer, "2 open turns")

        for _ in range(2):
            assert accepts(one)
        until(lambda: not accepts(one))
        until(lambda: not accepts(two))
        service.sql("UPDATE turns SET status = 'done', settled_at = now() WHERE workspace_id = %s", acme.workspace_id)
        until(lambda: accepts(one))
        until(lambda: accepts(two))
