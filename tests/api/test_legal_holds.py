"""Legal holds of sessions."""

from __future__ import annotations

from uuid import uuid4

from api.schemas import sessions as schemas
from tests.support.api_server import Tenant


def test_legal_hold_is_set_with_a_reason_and_removed(acme: Tenant):
    session = acme.session()
    path = f"/v1/sessions/{session['id']}/hold"
    assert (session["held_at"], session["held_by"], session["hold_reason"]) == (None, None, None)

    held = acme.call("PUT", path, 200, json={"reason": "A dispute."})
    again = acme.call("PUT", path, 200)
    changed = acme.call("PUT", path, 200, json={"reason": "Another dispute."})
    removed = acme.call("DELETE", path, 200)

    schemas.Session.model_validate(held)
    assert held["hold_reason"] == "A dispute."
    assert held["held_by"]
    assert again == held
    assert (changed["hold_reason"], changed["held_at"]) == ("Another dispute.", held["held_at"])
    assert (removed["held_at"], removed["held_by"], removed["hold_reason"]) == (None, None, None)
    assert acme.call("DELETE", path, 200) == removed
    assert acme.call("PUT", path, 200)["hold_reason"] is None


def test_invalid_hold_is_refused(acme: Tenant, other: Tenant):
    path = f"/v1/sessions/{acme.session()['id']}/hold"

    assert acme.call("PUT", path, 422, json={"reason": "x" * 2001})["errors"][0]["where"] == "body.reason"
    assert acme.call("PUT", f"/v1/sessions/{uuid4()}/hold", 404)["code"] == "NOT_FOUND"
    assert other.call("PUT", path, 404)["code"] == "NOT_FOUND"
    assert other.call("DELETE", path, 404)["code"] == "NOT_FOUND"
