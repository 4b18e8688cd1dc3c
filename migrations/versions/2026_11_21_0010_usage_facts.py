"""Every change that analytics count is noted by the transaction that makes it."""

from __future__ import annotations

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

TRIGGERS = (
    ("sessions_noted_new", "AFTER INSERT ON sessions FOR EACH ROW WHEN (NEW.counted) EXECUTE FUNCTION note_session()"),
    (
        "sessions_noted",
        "AFTER UPDATE OF status, message_count, tokens_used, cost_usd, satisfaction_score, ended_at ON sessions FOR EACH ROW"
        " WHEN (NEW.counted AND (OLD.status, OLD.message_count, OLD.tokens_used, OLD.cost_usd, OLD.satisfaction_score, OLD.ended_at)"
        " IS DISTINCT FROM (NEW.status, NEW.message_count, NEW.tokens_used, NEW.cost_usd, NEW.satisfaction_score, NEW.ended_at))"
        " EXECUTE FUNCTION note_session()",
    ),
    (
        "sessions_noted_gone",
        "AFTER DELETE ON sessions FOR EACH ROW WHEN (OLD.counted AND OLD.status = 'active') EXECUTE FUNCTION note_session()",
    ),
    ("turns_noted_new", "AFTER INSERT ON turns FOR EACH ROW WHEN (NEW.settled_at IS NOT NULL) EXECUTE FUNCTION note_turn()"),
    (
        "turns_noted",
        "AFTER UPDATE OF status, settled_at ON turns FOR EACH ROW"
        " WHEN (coalesce(OLD.settled_at, NEW.settled_at) IS NOT NULL"
        " AND (OLD.status, OLD.settled_at) IS DISTINCT FROM (NEW.status, NEW.settled_at)) EXECUTE FUNCTION note_turn()",
    ),
    (
        "model_calls_noted_new",
        "AFTER INSERT ON model_calls FOR EACH ROW WHEN (NEW.state <> 'reserved') EXECUTE FUNCTION note_model_call()",
    ),
    (
        "model_calls_noted",
        "AFTER UPDATE OF state, settled_at, cost_usd ON model_calls FOR EACH ROW"
        " WHEN (NOT (OLD.state = 'reserved' AND NEW.state = 'reserved')) EXECUTE FUNCTION note_model_call()",
    ),
    (
        "tool_calls_noted_new",
        "AFTER INSERT ON tool_calls FOR EACH ROW WHEN (NEW.state IN ('succeeded', 'failed', 'denied', 'unknown'))"
        " EXECUTE FUNCTION note_tool_call()",
    ),
    (
        "tool_calls_noted",
        "AFTER UPDATE OF state, settled_at ON tool_calls FOR EACH ROW"
        " WHEN (OLD.state IN ('succeeded', 'failed', 'denied', 'unknown') OR NEW.state IN ('succeeded', 'failed', 'denied', 'unknown'))"
        " EXECUTE FUNCTION note_tool_call()",
    ),
)


def upgrade() -> None:
    # Each waits for the writers of its table and keeps them waiting for a moment: one a transaction, and each harmless to repeat. A
    # session that is opened in between is counted by the job, as the older ones are.
    with op.get_context().autocommit_block():
        for name, rule in TRIGGERS:
            op.execute(f"CREATE OR REPLACE TRIGGER {name} {rule}")
        op.execute("ALTER TABLE sessions ALTER COLUMN counted SET DEFAULT true")
