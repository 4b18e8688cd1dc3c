"""Satisfaction scores of sessions, and their averages in analytics."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from api.schemas import sessions as schemas
from tests.support.api_server import Tenant


def test_last_score_counts_in_analytics(acme: Tenant):
    agent = acme.agent()["id"]
    sessions = [acme.session(agent_id=agent) for _ in range(3)]
    paths = [f"/v1/sessions/{session['id']}/satisfaction" for session in sessions]
    assert sessions[0]["satisfaction_score"] is None

    def average() -> Any:
        analytics = acme.call("GET", f"/v1/agents/{agent}/analytics", 200)
        assert analytics["metrics"]["satisfaction_score"] == analytics["session_stats"]["avg_satisfaction"]
        return analytics["metrics"]["satisfaction_score"]

    assert average() is None
    rated = acme.call("PUT", paths[0], 200, json={"score": 5})
    assert acme.call("PUT", paths[0], 200, json={"score": 5}) == rated
    schemas.Session.model_validate(rated)
    assert (rated["satisfaction_score"], average()) == (5, 5)
    acme.call("POST", f"/v1/sessions/{sessions[1]['id']}/end", 200)
    acme.call("PUT", paths[1], 200, json={"score": 4})
    assert average() == 4.5
    acme.call("PUT", paths[1], 200, json={"score": 1})
    assert average() == 3
    assert acme.call("DELETE", paths[0], 200)["satisfaction_score"] is None
    assert acme.call("DELETE", paths[0], 200)["satisfaction_score"] is None
    assert average() == 1


@pytest.mark.parametrize("score", [0, 6, 2.5, "5", True, None])
def test_invalid_score_returns_422(acme: Tenant, score: object):
    path = f"/v1/sessions/{acme.session()['id']}/satisfaction"
    assert acme.call("PUT", path, 422, json={"score": score})["errors"][0]["where"] == "body.score"


def test_session_of_another_workspace_cannot_be_rated(acme: Tenant, other: Tenant):
    path = f"/v1/sessions/{acme.session()['id']}/satisfaction"
    assert other.call("PUT", path, 404, json={"score": 4})["code"] == "NOT_FOUND"
    assert acme.call("PUT", f"/v1/sessions/{uuid4()}/satisfaction", 404, json={"score": 4})["code"] == "NOT_FOUND"
