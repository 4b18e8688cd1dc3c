-- Deletes one batch of what marked sessions have: everything of as many sessions as have p_rows events between them, or p_rows events
-- of one session that has more. A session's own row goes last. p_only limits it to these sessions; null means any. Counts what it
-- deletes in `deletions`. o_busy is how many sessions were taken; 0 means that nothing is left or that others have it. Runs as
-- turnline_maintenance.
-- Locks: up to 50 marked sessions, oldest mark first (locked ones are skipped), then what belongs to their turns, then budgets in the
--   order of their ids, then turns and events.
-- Callers: store/retention/cleanup.py.

CREATE OR REPLACE FUNCTION delete_marked(
    p_rows integer, p_only uuid[], OUT o_busy integer, OUT o_sessions integer, OUT o_turns integer, OUT o_events integer,
    OUT o_model_calls integer, OUT o_tool_calls integer, OUT o_approvals integer)
LANGUAGE plpgsql AS $$
DECLARE
    v_ids uuid[];
    v_turns uuid[];
    v_from integer;
    v_to integer := 2147483647;
    v_next integer;
BEGIN
    o_sessions := 0;
    o_events := 0;
    SELECT array_agg(id), coalesce(cardinality(array_agg(id)), 0) INTO v_ids, o_busy
    FROM (SELECT id, row_number() OVER (ORDER BY deleting_at, id) AS place, sum(event_count) OVER (ORDER BY deleting_at, id) AS so_far
          FROM (SELECT id, event_count, deleting_at FROM sessions
                WHERE deleting_at IS NOT NULL AND (p_only IS NULL OR id = ANY (p_only))
                ORDER BY deleting_at, id LIMIT 50 FOR UPDATE SKIP LOCKED) locked) counted
    WHERE so_far <= p_rows OR place = 1;

    v_turns := ARRAY(SELECT id FROM turns WHERE session_id = ANY (v_ids) LIMIT p_rows / 4);
    WITH gone AS (DELETE FROM approvals WHERE turn_id = ANY (v_turns) RETURNING session_id),
        n AS (SELECT session_id, count(*) AS n FROM gone GROUP BY 1),
        noted AS (UPDATE deletions d SET approvals = d.approvals + n.n FROM n WHERE d.session_id = n.session_id)
    SELECT coalesce(sum(n), 0) INTO o_approvals FROM n;
    WITH gone AS (DELETE FROM tool_calls WHERE turn_id = ANY (v_turns) RETURNING session_id),
        n AS (SELECT session_id, count(*) AS n FROM gone GROUP BY 1),
        noted AS (UPDATE deletions d SET tool_calls = d.tool_calls + n.n FROM n WHERE d.session_id = n.session_id)
    SELECT coalesce(sum(n), 0) INTO o_tool_calls FROM n;
    WITH gone AS (DELETE FROM model_calls WHERE turn_id = ANY (v_turns) RETURNING session_id),
        n AS (SELECT session_id, count(*) AS n FROM gone GROUP BY 1),
        noted AS (UPDATE deletions d SET model_calls = d.model_calls + n.n FROM n WHERE d.session_id = n.session_id)
    SELECT coalesce(sum(n), 0) INTO o_model_calls FROM n;
    -- Calls of unknown outcome may have been billed, so what they hold of the remaining budgets is spent.
    PERFORM 1 FROM budgets WHERE id IN (SELECT budget_id FROM budget_holds WHERE turn_id = ANY (v_turns)) ORDER BY id FOR UPDATE;
    WITH gone AS (DELETE FROM budget_holds WHERE turn_id = ANY (v_turns) RETURNING budget_id, day, amount),
        held AS (SELECT budget_id, day, sum(amount) AS amount FROM gone GROUP BY 1, 2)
    UPDATE budgets b SET reserved = b.reserved - h.amount, spent = b.spent + h.amount, updated_at = now()
    FROM (SELECT h.budget_id, sum(h.amount) AS amount FROM held h JOIN budgets x ON x.id = h.budget_id
          WHERE x.period = 'total' OR x.day = h.day GROUP BY 1) h
    WHERE b.id = h.budget_id;
    WITH gone AS (DELETE FROM turns WHERE id = ANY (v_turns) RETURNING session_id),
        n AS (SELECT session_id, count(*) AS n FROM gone GROUP BY 1),
        noted AS (UPDATE deletions d SET turns = d.turns + n.n FROM n WHERE d.session_id = n.session_id)
    SELECT coalesce(sum(n), 0) INTO o_turns FROM n;
    IF o_busy = 0 OR cardinality(v_turns) >= p_rows / 4 THEN
        RETURN;
    END IF;

    IF o_busy = 1 THEN  -- the log may be long: go on where the previous batch stopped, by the count in `deletions`
        SELECT d.events, s.next_offset INTO v_from, v_next FROM deletions d JOIN sessions s ON s.id = d.session_id
        WHERE d.session_id = v_ids[1];
        IF v_from + p_rows < v_next THEN
            v_to := v_from + p_rows;
        END IF;
    END IF;
    WITH gone AS (DELETE FROM events WHERE session_id = ANY (v_ids) AND "offset" < v_to AND "offset" >= coalesce(v_from, 0)
                  RETURNING session_id),
        n AS (SELECT session_id, count(*) AS n FROM gone GROUP BY 1),
        noted AS (UPDATE deletions d SET events = d.events + n.n FROM n WHERE d.session_id = n.session_id)
    SELECT coalesce(sum(n), 0) INTO o_events FROM n;
    IF v_to < 2147483647 THEN
        IF o_events > 0 THEN
            RETURN;
        END IF;
        -- No log should have a gap. If this one has, delete the rest of it at once.
        DELETE FROM events WHERE session_id = v_ids[1];
        GET DIAGNOSTICS o_events = ROW_COUNT;
        UPDATE deletions SET events = events + o_events WHERE session_id = v_ids[1];
    END IF;
    DELETE FROM budgets WHERE scope = 'session' AND scope_id = ANY (v_ids)
        AND workspace_id IN (SELECT workspace_id FROM sessions WHERE id = ANY (v_ids));
    UPDATE deletions SET finished_at = now() WHERE session_id = ANY (v_ids);
    DELETE FROM sessions WHERE id = ANY (v_ids);
    GET DIAGNOSTICS o_sessions = ROW_COUNT;
END $$;
