-- Writes to usage_facts how a turn ended. If an ended turn changes, as when it is redriven, it first takes back what was counted
-- before.
-- Locks: none.
-- Callers: triggers turns_noted_new and turns_noted on turns.

CREATE OR REPLACE FUNCTION note_turn() RETURNS trigger
LANGUAGE plpgsql AS $$
DECLARE
    v_agent uuid := (SELECT agent_id FROM sessions WHERE id = NEW.session_id AND counted);
BEGIN
    IF v_agent IS NOT NULL AND TG_OP = 'UPDATE' AND OLD.settled_at IS NOT NULL THEN
        INSERT INTO usage_facts (workspace_id, agent_id, kind, n, "at", session_id, state, took_ms, waited_ms, running_ms)
        VALUES (OLD.workspace_id, v_agent, 'turn', -1, OLD.settled_at, OLD.session_id, OLD.status,
            CASE OLD.status WHEN 'done' THEN ms_between(OLD.opened_at, OLD.settled_at) END, ms_between(OLD.opened_at, OLD.started_at),
            least(2147483647, floor(OLD.running_s * 1000)));
    END IF;
    IF v_agent IS NOT NULL AND NEW.settled_at IS NOT NULL THEN
        INSERT INTO usage_facts (workspace_id, agent_id, kind, "at", session_id, state, took_ms, waited_ms, running_ms)
        VALUES (NEW.workspace_id, v_agent, 'turn', NEW.settled_at, NEW.session_id, NEW.status,
            CASE NEW.status WHEN 'done' THEN ms_between(NEW.opened_at, NEW.settled_at) END, ms_between(NEW.opened_at, NEW.started_at),
            least(2147483647, floor(NEW.running_s * 1000)));
    END IF;
    RETURN NULL;
END $$;
