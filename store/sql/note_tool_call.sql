-- Writes to usage_facts how a tool call ended. If an ended call changes, it first takes back what was counted before. Calls of tools
-- that the agent does not have are counted under the nil id.
-- Locks: none.
-- Callers: triggers tool_calls_noted_new and tool_calls_noted on tool_calls.

CREATE OR REPLACE FUNCTION note_tool_call() RETURNS trigger
LANGUAGE plpgsql AS $$
DECLARE
    v_agent uuid := (SELECT agent_id FROM sessions WHERE id = NEW.session_id AND counted);
BEGIN
    IF v_agent IS NOT NULL AND TG_OP = 'UPDATE' AND OLD.state IN ('succeeded', 'failed', 'denied', 'unknown') THEN
        INSERT INTO usage_facts (workspace_id, agent_id, kind, n, "at", session_id, state, tool_id, took_ms)
        VALUES (OLD.workspace_id, v_agent, 'tool_call', -1, coalesce(OLD.settled_at, OLD.created_at), OLD.session_id, OLD.state,
            coalesce(OLD.tool_id, '00000000-0000-0000-0000-000000000000'), OLD.latency_ms);
    END IF;
    IF v_agent IS NOT NULL AND NEW.state IN ('succeeded', 'failed', 'denied', 'unknown') THEN
        INSERT INTO usage_facts (workspace_id, agent_id, kind, "at", session_id, state, tool_id, took_ms)
        VALUES (NEW.workspace_id, v_agent, 'tool_call', coalesce(NEW.settled_at, NEW.created_at), NEW.session_id, NEW.state,
            coalesce(NEW.tool_id, '00000000-0000-0000-0000-000000000000'), NEW.latency_ms);
    END IF;
    RETURN NULL;
END $$;
