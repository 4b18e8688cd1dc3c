-- Sets admitted_at when a turn gets its place in the workspace's window: from then on it waits for a worker. Returns the new row.
-- Locks: none.
-- Callers: trigger turns_granted on turns.

CREATE OR REPLACE FUNCTION note_admitted() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    NEW.admitted_at := now();
    RETURN NEW;
END $$;
