-- Writes to usage_facts how a session's counted columns changed, and how the session ended. A deleted session is subtracted only from
-- the number of active ones.
-- Locks: none.
-- Callers: triggers sessions_noted_new, sessions_noted and sessions_noted_gone on sessions.

CREATE OR REPLACE FUNCTION note_session() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN  -- it was still active; everything else of it stays counted
        INSERT INTO usage_facts (workspace_id, agent_id, kind, "at", session_id, started_at, active)
        VALUES (OLD.workspace_id, OLD.agent_id, 'session', OLD.last_activity_at, OLD.id, OLD.started_at, -1);
        RETURN NULL;
    ELSIF TG_OP = 'INSERT' THEN
        INSERT INTO usage_facts (workspace_id, agent_id, kind, "at", session_id, started_at, started, active, completed, abandoned,
            messages, messages_then, tokens, cost_usd, satisfaction, rated)
        VALUES (NEW.workspace_id, NEW.agent_id, 'session', NEW.last_activity_at, NEW.id, NEW.started_at, 1,
            (NEW.status = 'active')::integer, (NEW.status = 'completed')::integer, (NEW.status = 'abandoned')::integer,
            NEW.message_count, NEW.message_count, NEW.tokens_used, NEW.cost_usd, coalesce(NEW.satisfaction_score, 0),
            (NEW.satisfaction_score IS NOT NULL)::integer);
    ELSE
        INSERT INTO usage_facts (workspace_id, agent_id, kind, "at", session_id, started_at, active, completed, abandoned, messages,
            messages_then, tokens, cost_usd, satisfaction, rated)
        VALUES (NEW.workspace_id, NEW.agent_id, 'session', NEW.last_activity_at, NEW.id, NEW.started_at,
            (NEW.status = 'active')::integer - (OLD.status = 'active')::integer,
            (NEW.status = 'completed')::integer - (OLD.status = 'completed')::integer,
            (NEW.status = 'abandoned')::integer - (OLD.status = 'abandoned')::integer,
            NEW.message_count - OLD.message_count, NEW.message_count - OLD.message_count, NEW.tokens_used - OLD.tokens_used,
            NEW.cost_usd - OLD.cost_usd, coalesce(NEW.satisfaction_score, 0) - coalesce(OLD.satisfaction_score, 0),
            (NEW.satisfaction_score IS NOT NULL)::integer - (OLD.satisfaction_score IS NOT NULL)::integer);
    END IF;
    IF TG_OP = 'UPDATE' AND OLD.status <> 'active' AND (OLD.status, OLD.ended_at) IS DISTINCT FROM (NEW.status, NEW.ended_at) THEN
        INSERT INTO usage_facts (workspace_id, agent_id, kind, n, "at", session_id, state, duration_s)
        VALUES (OLD.workspace_id, OLD.agent_id, 'ending', -1, coalesce(OLD.ended_at, OLD.last_activity_at), OLD.id, OLD.status,
            floor(extract(epoch FROM OLD.ended_at - OLD.started_at)));
    END IF;
    IF NEW.status <> 'active' AND (TG_OP = 'INSERT' OR (OLD.status, OLD.ended_at) IS DISTINCT FROM (NEW.status, NEW.ended_at)) THEN
        INSERT INTO usage_facts (workspace_id, agent_id, kind, "at", session_id, state, duration_s)
        VALUES (NEW.workspace_id, NEW.agent_id, 'ending', coalesce(NEW.ended_at, NEW.last_activity_at), NEW.id, NEW.status,
            floor(extract(epoch FROM NEW.ended_at - NEW.started_at)));
    END IF;
    RETURN NULL;
END $$;
