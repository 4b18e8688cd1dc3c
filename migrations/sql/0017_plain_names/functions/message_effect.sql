-- Decides what a customer's message would do to the session's turns, and changes nothing. o_effect: opens (one more turn is open),
-- replaces (it interrupts or rolls back the open turns, and a turn is opened in their place), joins (the turn o_turn answers it too), none
-- (a person answers, or the message is refused). o_refusal: null or key_used, no_session, session_ended, agent_inactive, busy,
-- too_many_open, unsafe_ran. o_strategy is p_strategy or the agent's, with coalesce in place of interrupt and rollback where the agent
-- forbids interruption. p_max_open is how many turns of the session may be open; null means no limit.
-- Locks: none; accept_message holds the session's row, so that the decision stays true until its commit.
-- Callers: accept_message; store/conversations/backpressure.py.

CREATE OR REPLACE FUNCTION message_effect(
    p_session uuid, p_key text, p_strategy text, p_max_open integer DEFAULT NULL,
    OUT o_effect text, OUT o_refusal text, OUT o_strategy text, OUT o_turn uuid, OUT o_turn_status text)
LANGUAGE plpgsql STABLE AS $$
DECLARE
    s record;
    t record;  -- the session's last open turn
    v_open boolean;
BEGIN
    o_effect := 'none';
    IF p_key IS NOT NULL AND EXISTS (SELECT 1 FROM events WHERE session_id = p_session AND message_key = p_key) THEN
        o_refusal := 'key_used';
        RETURN;
    END IF;
    SELECT se.status, se.mode, a.strategy, a.allow_interruption, a.status = 'active' AND a.deleted_at IS NULL AS answers INTO s
    FROM sessions se JOIN agents a ON a.id = se.agent_id WHERE se.id = p_session;
    o_refusal := CASE WHEN NOT FOUND THEN 'no_session' WHEN s.status = 'completed' THEN 'session_ended'
                      WHEN NOT s.answers THEN 'agent_inactive' END;
    IF o_refusal IS NOT NULL OR s.mode = 'manual' THEN
        RETURN;
    END IF;
    o_strategy := coalesce(p_strategy, s.strategy);
    IF o_strategy IN ('interrupt', 'rollback') AND NOT s.allow_interruption THEN
        o_strategy := 'coalesce';
    END IF;
    SELECT id, status, strategy, attempts + writes = 0 AND status = 'queued' AS untouched, cancel_requested_at IS NOT NULL AS stopping
    INTO t FROM turns
    WHERE session_id = p_session AND status IN ('queued', 'running', 'waiting')
    ORDER BY opened_at_offset DESC LIMIT 1;
    v_open := FOUND;
    o_refusal := CASE
        WHEN NOT v_open THEN NULL
        WHEN o_strategy = 'reject' THEN 'busy'
        WHEN p_max_open <= (SELECT count(*) FROM turns WHERE session_id = p_session AND status IN ('queued', 'running', 'waiting'))
            THEN 'too_many_open'
        WHEN o_strategy = 'rollback' AND EXISTS (
                SELECT 1 FROM tool_calls c JOIN turns o ON o.id = c.turn_id
                WHERE o.session_id = p_session AND o.status IN ('queued', 'running', 'waiting') AND c.effect = 'unsafe'
                    AND (c.state IN ('running', 'succeeded', 'unknown') OR c.state = 'failed' AND c.attempts > 0)) THEN 'unsafe_ran' END;
    IF o_refusal IS NOT NULL THEN
        RETURN;
    ELSIF NOT v_open OR t.stopping OR o_strategy = 'enqueue' OR o_strategy = 'coalesce' AND t.strategy = 'enqueue' THEN
        o_effect := 'opens';
    ELSIF o_strategy IN ('interrupt', 'rollback') AND NOT t.untouched THEN
        o_effect := 'replaces';
    ELSE
        o_effect := 'joins';
        o_turn := t.id;
        o_turn_status := t.status;
    END IF;
END $$;
