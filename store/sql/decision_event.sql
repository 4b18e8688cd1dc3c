-- Returns the log event that says how an approval was decided.
-- Locks: none.
-- Callers: decide_approval, expire_approvals_of.

CREATE OR REPLACE FUNCTION decision_event(p approvals, p_decision text) RETURNS jsonb
LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object('kind', 'status_update', 'source', 'system', 'content', jsonb_strip_nulls(jsonb_build_object(
        'status', 'approval_decided', 'decision', p_decision, 'approval_id', p.id, 'tool_call_id', p.tool_call_id,
        'tool_name', p.tool_name, 'decided_by', p.decided_by, 'decided_at', p.decided_at, 'reason', p.reason,
        'edited_arguments', p.edited_arguments)))
$$;
