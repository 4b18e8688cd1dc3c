-- Decides a pending approval: approved (with p_edited in place of the model's arguments, and p_hash as their hash) or denied. A waiting
-- turn goes on. o_outcome: decided, not_found, decided_before, expired, over (its turn has ended). o_dispatch is the turn to dispatch after
-- the commit.
-- Locks: the session's row, then the approval, then its turn.
-- Callers: store/conversations/approvals.py.

CREATE OR REPLACE FUNCTION decide_approval(
    p_workspace uuid, p_approval uuid, p_decision text, p_by text, p_reason text, p_edited jsonb, p_hash text,
    OUT o_outcome text, OUT o_session uuid, OUT o_offset integer, OUT o_dispatch uuid)
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
    UPDATE turns SET status = 'queued', not_before = NULL, dispatched_at = NULL, dispatch_count = 0, admission = 'admitted', updated_at = now()
    FROM sessions s
    WHERE turns.id = v_turn AND turns.status = 'waiting' AND s.id = o_session
    RETURNING CASE WHEN s.mode = 'auto' AND s.quarantined_at IS NULL THEN turns.id END INTO o_dispatch;
    o_outcome := 'decided';
END $$;
