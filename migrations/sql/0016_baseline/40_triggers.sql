-- Each change that analytics count is noted in usage_facts by the transaction that makes it. A session counts from its creation
-- (`counted`); a session whose `counted` is false is added later by note_older_sessions.

CREATE TRIGGER sessions_noted_new AFTER INSERT ON sessions
    FOR EACH ROW WHEN (NEW.counted) EXECUTE FUNCTION note_session();
CREATE TRIGGER sessions_noted AFTER UPDATE OF status, message_count, tokens_used, cost_usd, satisfaction_score, ended_at ON sessions
    FOR EACH ROW WHEN (NEW.counted AND (OLD.status, OLD.message_count, OLD.tokens_used, OLD.cost_usd, OLD.satisfaction_score, OLD.ended_at)
        IS DISTINCT FROM (NEW.status, NEW.message_count, NEW.tokens_used, NEW.cost_usd, NEW.satisfaction_score, NEW.ended_at))
    EXECUTE FUNCTION note_session();
CREATE TRIGGER sessions_noted_gone AFTER DELETE ON sessions
    FOR EACH ROW WHEN (OLD.counted AND OLD.status = 'active') EXECUTE FUNCTION note_session();

CREATE TRIGGER turns_noted_new AFTER INSERT ON turns
    FOR EACH ROW WHEN (NEW.settled_at IS NOT NULL) EXECUTE FUNCTION note_turn();
CREATE TRIGGER turns_noted AFTER UPDATE OF status, settled_at ON turns
    FOR EACH ROW WHEN (coalesce(OLD.settled_at, NEW.settled_at) IS NOT NULL
        AND (OLD.status, OLD.settled_at) IS DISTINCT FROM (NEW.status, NEW.settled_at))
    EXECUTE FUNCTION note_turn();

CREATE TRIGGER model_calls_noted_new AFTER INSERT ON model_calls
    FOR EACH ROW WHEN (NEW.state <> 'reserved') EXECUTE FUNCTION note_model_call();
CREATE TRIGGER model_calls_noted AFTER UPDATE OF state, settled_at, cost_usd ON model_calls
    FOR EACH ROW WHEN (NOT (OLD.state = 'reserved' AND NEW.state = 'reserved')) EXECUTE FUNCTION note_model_call();

CREATE TRIGGER tool_calls_noted_new AFTER INSERT ON tool_calls
    FOR EACH ROW WHEN (NEW.state IN ('succeeded', 'failed', 'denied', 'unknown')) EXECUTE FUNCTION note_tool_call();
CREATE TRIGGER tool_calls_noted AFTER UPDATE OF state, settled_at ON tool_calls
    FOR EACH ROW WHEN (OLD.state IN ('succeeded', 'failed', 'denied', 'unknown')
        OR NEW.state IN ('succeeded', 'failed', 'denied', 'unknown'))
    EXECUTE FUNCTION note_tool_call();

-- A turn that gets its place in the workspace's window waits for a worker from then on.
CREATE TRIGGER turns_granted BEFORE UPDATE OF place ON turns
    FOR EACH ROW WHEN (NEW.place = 'granted' AND OLD.place <> 'granted') EXECUTE FUNCTION note_granted();
