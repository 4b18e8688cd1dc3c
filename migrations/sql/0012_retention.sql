-- Deleting sessions with everything of theirs, as turnline_maintenance, which never sees what was said in them. A session is marked first:
-- from then on the application does not find it. What belongs to it goes in small batches, its own row last, so that whoever is killed
-- in between leaves a marked session to the next run. `deletions` counts along in the same transactions.

-- Mark up to p_limit sessions that ended longer ago than their agent's retention (or their workspace's, where that is shorter) and in which
-- nothing has happened since; how many. Not those that are held, have an open turn or a live lease, or are not counted yet.
CREATE FUNCTION mark_expired(p_limit integer) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    v_ids uuid[];
BEGIN
    v_ids := ARRAY(
        SELECT due.id FROM agents a JOIN workspaces w ON w.id = a.workspace_id CROSS JOIN LATERAL (
            SELECT s.id FROM sessions s
            WHERE s.agent_id = a.id AND s.ended_at < now() - make_interval(days => least(a.data_retention_days, w.data_retention_days))
                AND s.last_activity_at < now() - make_interval(days => least(a.data_retention_days, w.data_retention_days))
                AND s.deleting_at IS NULL AND s.held_at IS NULL AND s.status <> 'active' AND s.counted
                AND (s.lease_until IS NULL OR s.lease_until < now())
                AND NOT EXISTS (SELECT 1 FROM turns t WHERE t.session_id = s.id AND t.status IN ('queued', 'running', 'waiting'))
            ORDER BY s.ended_at LIMIT p_limit FOR UPDATE SKIP LOCKED) due
        LIMIT p_limit);
    RETURN mark_locked(v_ids, 'retention', NULL);
END $$;

-- Mark those of p_sessions that can go: ended, not held, nothing open; how many. The others are left as they are.
CREATE FUNCTION mark_erased(p_sessions uuid[], p_erasure uuid) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    v_ids uuid[];
BEGIN
    v_ids := ARRAY(SELECT id FROM sessions
                   WHERE id = ANY (p_sessions) AND deleting_at IS NULL AND held_at IS NULL AND status <> 'active' AND counted
                       AND (lease_until IS NULL OR lease_until < now())
                   ORDER BY id FOR UPDATE SKIP LOCKED);
    RETURN mark_locked(v_ids, 'erase', p_erasure);
END $$;

-- The caller holds their rows: what is asked here about turns is asked after that, so that none is opened meanwhile.
CREATE FUNCTION mark_locked(p_sessions uuid[], p_reason text, p_erasure uuid) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    v_count integer;
BEGIN
    UPDATE sessions SET deleting_at = now()
    WHERE id = ANY (p_sessions)
        AND NOT EXISTS (SELECT 1 FROM turns t WHERE t.session_id = sessions.id AND t.status IN ('queued', 'running', 'waiting'));
    GET DIAGNOSTICS v_count = ROW_COUNT;
    INSERT INTO deletions (session_id, workspace_id, agent_id, reason, erasure_id)
    SELECT id, workspace_id, agent_id, p_reason, p_erasure FROM sessions WHERE id = ANY (p_sessions) AND deleting_at = now();
    RETURN v_count;
END $$;

-- Delete one batch of what marked sessions have: of as many as have p_rows events between them, or p_rows events of one that has more.
-- p_only: of these sessions, or (null) of any. o_busy: how many sessions were at hand; 0: there is nothing left to do, or others do it.
CREATE FUNCTION delete_marked(
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
    -- What calls of unknown outcome hold of budgets that stay is spent for good: they may have been billed.
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

    IF o_busy = 1 THEN  -- perhaps a long log: from where the batch before left off, as the record has it
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
        -- A log with a gap in it, which no log of ours has: what is left of it goes at once.
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
