-- Records that these turns were dispatched, so that the sweep leaves them alone for a while. Changes only queued turns that were not
-- dispatched before.
-- Locks: the turns' rows, in no particular order.
-- Callers: tasks/dispatcher.py.

-- turnline_maintenance owns it: SECURITY DEFINER gives it that role's column rights and no more.
GRANT CREATE ON SCHEMA public TO turnline_maintenance;
SET LOCAL ROLE turnline_maintenance;

CREATE OR REPLACE FUNCTION mark_dispatched(p_turns uuid[]) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    UPDATE turns SET dispatched_at = now() WHERE id = ANY (p_turns) AND status = 'queued' AND dispatched_at IS NULL
$$;

REVOKE ALL ON FUNCTION mark_dispatched(uuid[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION mark_dispatched(uuid[]) TO turnline_app;
SET LOCAL ROLE turnline_owner;
REVOKE CREATE ON SCHEMA public FROM turnline_maintenance;
