-- What people do to turns and sessions, one statement (one transaction) each, with the caller's rights; and the budgets' arithmetic.
-- Lock order: the session's row, its turns, then budgets by id.

-- The budgets that a model call of this session counts against.
CREATE FUNCTION budgets_of(p_workspace uuid, p_agent uuid, p_session uuid) RETURNS SETOF budgets LANGUAGE sql STABLE AS $$
    SELECT * FROM budgets
    WHERE workspace_id = p_workspace AND (scope = 'workspace' AND scope_id = p_workspace OR scope = 'agent' AND scope_id = p_agent
        OR scope = 'session' AND scope_id = p_session)
$$;

-- Hold what a model call may cost at most against every budget it counts against; what the same call held before is given back first.
-- Null where all of them have room; else nothing is held, and the sentence says which has none. Dollars that are null have no known bound.
CREATE FUNCTION reserve_budgets(
    p_workspace uuid, p_agent uuid, p_session uuid, p_turn uuid, p_step integer, p_attempt integer, p_usd numeric, p_tokens bigint)
RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    b budgets;
    v_today date := (now() AT TIME ZONE 'UTC')::date;
    v_amount numeric;
    v_ids uuid[];
BEGIN
    IF p_tokens IS NULL OR NOT EXISTS (SELECT 1 FROM budgets_of(p_workspace, p_agent, p_session)) THEN
        RETURN NULL;
    END IF;
    -- Those that are there now: a budget made meanwhile counts from the next call on.
    SELECT array_agg(id) INTO v_ids
    FROM (SELECT id FROM budgets WHERE id IN (SELECT id FROM budgets_of(p_workspace, p_agent, p_session)) ORDER BY id FOR UPDATE) locked;
    UPDATE budgets SET day = v_today, spent = 0, reserved = 0 WHERE id = ANY (v_ids) AND period = 'day' AND day < v_today;
    WITH back AS (DELETE FROM budget_holds WHERE turn_id = p_turn AND step = p_step AND attempt = p_attempt RETURNING *)
    UPDATE budgets SET reserved = reserved - back.amount FROM back
    WHERE budgets.id = back.budget_id AND (period = 'total' OR budgets.day = back.day);
    FOR b IN SELECT * FROM budgets WHERE id = ANY (v_ids) ORDER BY id LOOP
        v_amount := CASE b.unit WHEN 'usd' THEN p_usd ELSE p_tokens END;
        IF v_amount IS NULL THEN
            RETURN 'The ' || b.scope || ' has a budget in dollars, and no price is known for this model.';
        ELSIF b.spent + b.reserved + v_amount > b.cap THEN
            RETURN format('The %s''s %s budget of %s is spent: %s spent, %s reserved, %s more wanted.', b.scope,
                CASE b.period WHEN 'day' THEN 'daily' ELSE 'total' END, budget_said(b.cap, b.unit), budget_said(b.spent, b.unit),
                budget_said(b.reserved, b.unit), budget_said(v_amount, b.unit));
        END IF;
    END LOOP;
    UPDATE budgets SET reserved = reserved + CASE unit WHEN 'usd' THEN p_usd ELSE p_tokens END, updated_at = now() WHERE id = ANY (v_ids);
    INSERT INTO budget_holds (turn_id, step, attempt, budget_id, workspace_id, amount, day)
    SELECT p_turn, p_step, p_attempt, id, p_workspace, CASE unit WHEN 'usd' THEN p_usd ELSE p_tokens END, v_today
    FROM budgets WHERE id = ANY (v_ids);
    RETURN NULL;
END $$;

CREATE FUNCTION budget_said(p_amount numeric, p_unit text) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE p_unit WHEN 'usd' THEN '$' || trim_scale(p_amount) ELSE trim_scale(p_amount) || ' tokens' END
$$;

-- Settle what a model call held: its cost takes the place of the hold, or all of the hold where its cost or
-- its tokens were not told. A call that may have been billed keeps its hold for good.
CREATE FUNCTION settle_budgets(p_turn uuid, p_step integer, p_attempt integer, p_state text, p_cost numeric, p_tokens bigint) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF p_state = 'unknown' THEN
        RETURN;
    END IF;
    PERFORM 1 FROM budgets WHERE id IN (SELECT budget_id FROM budget_holds WHERE turn_id = p_turn AND step = p_step AND attempt = p_attempt)
    ORDER BY id FOR UPDATE;
    WITH back AS (DELETE FROM budget_holds WHERE turn_id = p_turn AND step = p_step AND attempt = p_attempt RETURNING *)
    UPDATE budgets SET reserved = reserved - back.amount, updated_at = now(),
        spent = spent + CASE WHEN p_state = 'failed' THEN 0 WHEN unit = 'usd' THEN coalesce(p_cost, back.amount)
                             ELSE coalesce(nullif(p_tokens, 0), back.amount) END
    FROM back WHERE budgets.id = back.budget_id AND (period = 'total' OR budgets.day = back.day);
END $$;

-- Approvals of a turn whose time has run out, said in the log. The caller holds the session's row.
CREATE FUNCTION expire_approvals_of(p_workspace uuid, p_session uuid, p_turn uuid, p_fence bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    v_events jsonb;
BEGIN
    WITH late AS (UPDATE approvals SET status = 'expired', decided_at = now()
                  WHERE turn_id = p_turn AND status = 'pending' AND expires_at <= now() RETURNING *)
    SELECT jsonb_agg(decision_event(late, 'expired')) INTO v_events FROM late;
    IF v_events IS NOT NULL THEN
        PERFORM append_events(p_workspace, p_session, p_turn, p_fence, v_events);
    END IF;
END $$;

CREATE FUNCTION decision_event(p approvals, p_decision text) RETURNS jsonb LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object('kind', 'status_update', 'source', 'system', 'content', jsonb_strip_nulls(jsonb_build_object(
        'status', 'approval_decided', 'decision', p_decision, 'approval_id', p.id, 'tool_call_id', p.tool_call_id,
        'tool_name', p.tool_name, 'decided_by', p.decided_by, 'decided_at', p.decided_at, 'reason', p.reason,
        'edited_arguments', p.edited_arguments)))
$$;

-- Decide a pending approval: approved (with p_edited arguments in place of the model's, whose hash is p_hash) or denied.
-- o_outcome: decided, not_found, decided_before, expired, over (its turn has ended). o_ring: the turn that goes on.
CREATE FUNCTION decide_approval(
    p_workspace uuid, p_approval uuid, p_decision text, p_by text, p_reason text, p_edited jsonb, p_hash text,
    OUT o_outcome text, OUT o_session uuid, OUT o_offset integer, OUT o_ring uuid)
LANGUAGE plpgsql AS $$
DECLARE
    p approvals;
    v_turn uuid;
    v_fence bigint;
BEGIN
    PERFORM set_config('app.workspace_id', p_workspace::text, true);
    SELECT session_id, turn_id INTO o_session, v_turn FROM approvals WHERE id = p_approval;
    IF NOT FOUND THEN
        o_outcome := 'not_found';
        RETURN;
    END IF;
    SELECT lease_fence INTO v_fence FROM sessions WHERE id = o_session FOR NO KEY UPDATE;
    SELECT * INTO p FROM approvals WHERE id = p_approval;
    IF p.status <> 'pending' THEN
        o_outcome := CASE p.status WHEN 'expired' THEN 'expired' WHEN 'cancelled' THEN 'over' ELSE 'decided_before' END;
        RETURN;
    ELSIF p.expires_at <= now() THEN
        o_outcome := 'expired';
        RETURN;
    END IF;
    UPDATE approvals SET status = p_decision, decided_by = p_by, decided_at = now(), reason = p_reason,
        edited_arguments = p_edited, arguments_hash = coalesce(p_hash, arguments_hash)
    WHERE id = p_approval RETURNING * INTO p;
    o_offset := append_events(p_workspace, o_session, v_turn, v_fence, jsonb_build_array(decision_event(p, p_decision)));
    UPDATE turns SET status = 'queued', not_before = NULL, rung_at = NULL, rings = 0, place = 'granted', updated_at = now()
    FROM sessions s
    WHERE turns.id = v_turn AND turns.status = 'waiting' AND s.id = o_session
    RETURNING CASE WHEN s.mode = 'auto' AND s.quarantined_at IS NULL THEN turns.id END INTO o_ring;
    o_outcome := 'decided';
END $$;

-- Cancel one open turn (p_turn), or every open turn of a session (p_turn null). o_outcome: cancelled (ended now), cancelling (a worker
-- carries it and will stop within a second), settled (nothing was open), not_found.
CREATE FUNCTION cancel_turns(
    p_workspace uuid, p_session uuid, p_turn uuid, p_by text, OUT o_outcome text, OUT o_session uuid, OUT o_offset integer, OUT o_ring uuid)
LANGUAGE plpgsql AS $$
DECLARE
    v_ended integer;
    v_flagged integer;
BEGIN
    PERFORM set_config('app.workspace_id', p_workspace::text, true);
    o_session := coalesce(p_session, (SELECT session_id FROM turns WHERE id = p_turn));
    PERFORM 1 FROM sessions WHERE id = o_session FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        o_outcome := 'not_found';
        RETURN;
    END IF;
    SELECT count(*) FILTER (WHERE ended), count(*) FILTER (WHERE NOT ended) INTO v_ended, v_flagged
    FROM (SELECT stop_turn(p_workspace, o_session, o.id, 'Cancelled', p_by) AS ended
          FROM (SELECT id FROM turns WHERE session_id = o_session AND (p_turn IS NULL OR id = p_turn)
                    AND status IN ('queued', 'running', 'waiting') ORDER BY opened_at_offset) o) x;
    o_outcome := CASE WHEN v_flagged > 0 THEN 'cancelling' WHEN v_ended > 0 THEN 'cancelled' ELSE 'settled' END;
    SELECT next_offset - 1 INTO o_offset FROM sessions WHERE id = o_session;
    IF v_ended > 0 THEN
        o_ring := hand_on(p_workspace, o_session);
    END IF;
END $$;

-- Switch who answers. o_outcome: switched, unchanged, session_ended, not_found. Manual ends every open turn: a person answers now.
-- Auto rings what waited. Paused lets nothing begin; a turn under way rests at its next commit.
CREATE FUNCTION set_mode(
    p_workspace uuid, p_session uuid, p_mode text, p_by text, p_window integer,
    OUT o_outcome text, OUT o_offset integer, OUT o_ring uuid)
LANGUAGE plpgsql AS $$
DECLARE
    s record;
BEGIN
    PERFORM set_config('app.workspace_id', p_workspace::text, true);
    SELECT mode, status, lease_fence INTO s FROM sessions WHERE id = p_session FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        o_outcome := 'not_found';
        RETURN;
    ELSIF s.mode = p_mode THEN
        o_outcome := 'unchanged';
        RETURN;
    ELSIF s.status <> 'active' THEN
        o_outcome := 'session_ended';
        RETURN;
    END IF;
    UPDATE sessions SET mode = p_mode, updated_at = now() WHERE id = p_session;
    PERFORM append_events(p_workspace, p_session, NULL, s.lease_fence, jsonb_build_array(jsonb_build_object(
        'kind', 'status_update', 'source', 'system', 'content',
        jsonb_build_object('status', 'mode', 'mode', p_mode, 'previous', s.mode, 'by', p_by))));
    IF p_mode = 'manual' THEN
        PERFORM stop_turn(p_workspace, p_session, o.id, 'TakenOver', p_by)
        FROM (SELECT id FROM turns WHERE session_id = p_session AND status IN ('queued', 'running', 'waiting')
              ORDER BY opened_at_offset) o;
    ELSIF p_mode = 'paused' THEN
        UPDATE turns SET place = 'waiting' WHERE session_id = p_session AND status = 'queued' AND place = 'granted';
    ELSE
        o_ring := ring_first(p_workspace, p_session, p_window);
    END IF;
    SELECT next_offset - 1 INTO o_offset FROM sessions WHERE id = p_session;
    o_outcome := 'switched';
END $$;

-- A person's message, as themselves or on the agent's behalf; opens no turn. Outcomes as accept_message's.
CREATE FUNCTION say_as_person(
    p_workspace uuid, p_session uuid, p_source text, p_content jsonb, p_metadata jsonb, p_key text,
    OUT o_outcome text, OUT o_event_id uuid, OUT o_offset integer, OUT o_created_at timestamptz)
LANGUAGE plpgsql AS $$
DECLARE
    s record;
    v_same boolean;
BEGIN
    PERFORM set_config('app.workspace_id', p_workspace::text, true);
    SELECT status, lease_fence INTO s FROM sessions WHERE id = p_session FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        o_outcome := 'no_session';
        RETURN;
    END IF;
    IF p_key IS NOT NULL THEN
        SELECT e.id, e."offset", e.created_at, e.source = p_source AND e.content->'text' = p_content->'text'
        INTO o_event_id, o_offset, o_created_at, v_same FROM events e WHERE e.session_id = p_session AND e.message_key = p_key;
        IF FOUND THEN
            o_outcome := CASE WHEN v_same THEN 'repeated' ELSE 'conflict' END;
            RETURN;
        END IF;
    END IF;
    IF s.status <> 'active' THEN
        o_outcome := 'session_ended';
        RETURN;
    END IF;
    UPDATE sessions SET next_offset = next_offset + 1, event_count = event_count + 1, message_count = message_count + 1,
        last_activity_at = now()
    WHERE id = p_session RETURNING next_offset - 1 INTO o_offset;
    INSERT INTO events (workspace_id, session_id, "offset", kind, source, content, metadata, message_key, fence)
    VALUES (p_workspace, p_session, o_offset, 'agent_message', p_source, p_content, p_metadata, p_key, s.lease_fence)
    RETURNING id, created_at INTO o_event_id, o_created_at;
    o_outcome := 'accepted';
END $$;

-- Give a turn that ended without a reply another go: from its last step, or (p_scratch) from its messages again. Lifts the session's
-- quarantine. o_outcome: redriven, not_found, not_ended (still open), answered, cancelled, answered_later, unsafe_ran, session_ended,
-- manual.
CREATE FUNCTION redrive_turn(
    p_workspace uuid, p_turn uuid, p_scratch boolean, p_by text, p_window integer,
    OUT o_outcome text, OUT o_session uuid, OUT o_offset integer, OUT o_ring uuid)
LANGUAGE plpgsql AS $$
DECLARE
    s record;
    t record;
BEGIN
    PERFORM set_config('app.workspace_id', p_workspace::text, true);
    SELECT session_id INTO o_session FROM turns WHERE id = p_turn;
    IF NOT FOUND THEN
        o_outcome := 'not_found';
        RETURN;
    END IF;
    SELECT status, lease_fence, mode INTO s FROM sessions WHERE id = o_session FOR NO KEY UPDATE;
    SELECT status, opened_at_offset INTO t FROM turns WHERE id = p_turn;
    o_outcome := CASE
        WHEN t.status = 'done' THEN 'answered'
        WHEN t.status = 'cancelled' THEN 'cancelled'
        WHEN t.status NOT IN ('dead', 'failed') THEN 'not_ended'
        WHEN s.status <> 'active' THEN 'session_ended'
        WHEN s.mode = 'manual' THEN 'manual'
        WHEN EXISTS (SELECT 1 FROM turns WHERE session_id = o_session AND opened_at_offset > t.opened_at_offset
                     AND status IN ('running', 'waiting', 'done')) THEN 'answered_later'
        WHEN p_scratch AND EXISTS (SELECT 1 FROM tool_calls c WHERE turn_id = p_turn
                     AND coalesce(effect, (SELECT l.effect FROM tools l WHERE l.id = c.tool_id)) = 'unsafe'
                     AND (state IN ('running', 'succeeded', 'unknown') OR state = 'failed' AND attempts > 0)) THEN 'unsafe_ran'
        ELSE 'redriven' END;
    IF o_outcome <> 'redriven' THEN
        RETURN;
    END IF;
    PERFORM append_events(p_workspace, o_session, p_turn, s.lease_fence, jsonb_build_array(jsonb_build_object(
        'kind', 'status_update', 'source', 'system', 'content',
        jsonb_build_object('status', 'redriven', 'from_scratch', p_scratch, 'by', p_by))));
    UPDATE sessions SET quarantined_at = NULL, dead_in_row = 0 WHERE id = o_session RETURNING next_offset - 1 INTO o_offset;
    UPDATE turns SET status = 'queued', attempts = 0, redrives = redrives + 1, not_before = NULL, rung_at = NULL, rings = 0,
        place = 'behind', endings = jsonb_path_query_array(endings || coalesce(ending_of(p_turn, false), '[]'),
            '$[last - 19 to last]'),
        error_class = NULL, error_detail = NULL, settled_at = NULL, read_through_offset = NULL, started_at = NULL,
        carried_s = 0, cancel_requested_at = NULL, cancel_reason = NULL, cancelled_by = NULL, updated_at = now(),
        agent_digest = CASE WHEN p_scratch THEN NULL ELSE agent_digest END
    WHERE id = p_turn;
    o_ring := ring_first(p_workspace, o_session, p_window);
END $$;

-- Lift a session's quarantine; its turns are carried again. o_outcome: released, unchanged, not_found.
CREATE FUNCTION release_session(
    p_workspace uuid, p_session uuid, p_by text, p_window integer, OUT o_outcome text, OUT o_offset integer, OUT o_ring uuid)
LANGUAGE plpgsql AS $$
DECLARE
    s record;
BEGIN
    PERFORM set_config('app.workspace_id', p_workspace::text, true);
    SELECT quarantined_at, lease_fence INTO s FROM sessions WHERE id = p_session FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        o_outcome := 'not_found';
        RETURN;
    ELSIF s.quarantined_at IS NULL THEN
        o_outcome := 'unchanged';
        RETURN;
    END IF;
    UPDATE sessions SET quarantined_at = NULL, dead_in_row = 0 WHERE id = p_session;
    o_offset := append_events(p_workspace, p_session, NULL, s.lease_fence, jsonb_build_array(jsonb_build_object(
        'kind', 'status_update', 'source', 'system', 'content', jsonb_build_object('status', 'released', 'by', p_by))));
    o_ring := ring_first(p_workspace, p_session, p_window);
    o_outcome := 'released';
END $$;

-- Which of the turns that a process carries are to be stopped, and why. Ids and reasons only, so it needs no workspace.
CREATE FUNCTION stops_of(p_sessions uuid[]) RETURNS TABLE (session_id uuid, reason text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT t.session_id, t.cancel_reason FROM turns t
    WHERE t.status = 'running' AND t.cancel_requested_at IS NOT NULL AND t.session_id = ANY (p_sessions)
$$;
REVOKE ALL ON FUNCTION stops_of(uuid[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION stops_of(uuid[]) TO turnline_app;
GRANT CREATE ON SCHEMA public TO turnline_maintenance;
ALTER FUNCTION stops_of(uuid[]) OWNER TO turnline_maintenance;
REVOKE CREATE ON SCHEMA public FROM turnline_maintenance;
