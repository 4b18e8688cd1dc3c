-- Stores a customer's message: its event, the session's counters and, by the strategy, the turn that will answer it. Reopens an
-- abandoned session. p_window is how many turns of the workspace may be dispatched or running, p_max_open how many turns of the session
-- may be open. o_outcome: accepted, repeated or conflict (the key was used before), no_session, session_ended, agent_inactive, busy,
-- too_many_open, unsafe_ran. o_dispatch is the turn to dispatch after the commit. message_effect decides, under the session's lock.
-- Locks: the session's row, then its turns.
-- Callers: store/conversations/intake.py.

CREATE OR REPLACE FUNCTION accept_message(
    p_workspace uuid, p_session uuid, p_content jsonb, p_metadata jsonb, p_key text, p_strategy text,
    p_window integer DEFAULT 200, p_max_open integer DEFAULT NULL,
    OUT o_outcome text, OUT o_event_id uuid, OUT o_offset integer, OUT o_created_at timestamptz,
    OUT o_turn_id uuid, OUT o_turn_status text, OUT o_dispatch uuid)
LANGUAGE plpgsql AS $$
DECLARE
    s record;
    m record;  -- what the message does to the session's turns
    v_same boolean;
    v_first boolean;  -- no turn of the session was open
    v_stopped boolean := false;
BEGIN
    PERFORM set_config('app.workspace_id', p_workspace::text, true);
    SELECT status, lease_fence INTO s FROM sessions WHERE id = p_session FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        o_outcome := 'no_session';
        RETURN;
    END IF;
    SELECT * INTO m FROM message_effect(p_session, p_key, p_strategy, p_max_open);
    IF m.o_refusal = 'key_used' THEN
        SELECT e.id, e."offset", e.created_at, e.turn_id, t.status, e.kind = 'customer_message' AND e.content->'text' = p_content->'text'
        INTO o_event_id, o_offset, o_created_at, o_turn_id, o_turn_status, v_same
        FROM events e LEFT JOIN turns t ON t.id = e.turn_id
        WHERE e.session_id = p_session AND e.message_key = p_key;
        o_outcome := CASE WHEN v_same THEN 'repeated' ELSE 'conflict' END;
        RETURN;
    ELSIF m.o_refusal IS NOT NULL THEN
        o_outcome := m.o_refusal;
        RETURN;
    END IF;
    IF s.status = 'abandoned' THEN  -- a customer who comes back finds the session as it was
        PERFORM reopen_session(p_workspace, p_session, s.lease_fence);
    END IF;

    IF m.o_effect <> 'none' THEN
        v_first := NOT EXISTS (SELECT 1 FROM turns WHERE session_id = p_session AND status IN ('queued', 'running', 'waiting'));
        IF m.o_strategy IN ('interrupt', 'rollback') THEN
            -- Stop them before the message gets its offset, so that their last events stand before it in the log.
            SELECT coalesce(bool_or(cancel_turn(p_workspace, p_session, o.id,
                    CASE m.o_strategy WHEN 'interrupt' THEN 'Interrupted' ELSE 'RolledBack' END, 'customer')), false)
            INTO v_stopped
            FROM (SELECT id FROM turns WHERE session_id = p_session AND status IN ('queued', 'running', 'waiting')
                      AND (status <> 'queued' OR attempts + writes > 0) AND cancel_requested_at IS NULL
                  ORDER BY opened_at_offset) o;
        END IF;
    END IF;

    UPDATE sessions SET next_offset = next_offset + 1, event_count = event_count + 1, message_count = message_count + 1,
        last_activity_at = now()
    WHERE id = p_session RETURNING next_offset - 1 INTO o_offset;
    o_outcome := 'accepted';
    IF m.o_effect = 'joins' THEN
        o_turn_id := m.o_turn;
        o_turn_status := m.o_turn_status;
    ELSIF m.o_effect IN ('opens', 'replaces') THEN
        o_turn_status := 'queued';
        INSERT INTO turns (workspace_id, session_id, strategy, opened_at_offset, admission)
        VALUES (p_workspace, p_session, m.o_strategy, o_offset, 'blocked') RETURNING id INTO o_turn_id;
    END IF;
    IF v_first OR v_stopped THEN
        o_dispatch := admit_first(p_workspace, p_session, p_window);
    END IF;
    INSERT INTO events (workspace_id, session_id, "offset", kind, source, content, metadata, turn_id, message_key, fence)
    SELECT p_workspace, p_session, o_offset, 'customer_message', 'customer', p_content, p_metadata, o_turn_id, p_key, lease_fence
    FROM sessions WHERE id = p_session
    RETURNING id, created_at INTO o_event_id, o_created_at;
END $$;
