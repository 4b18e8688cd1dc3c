-- Sets admitted_at when a turn is admitted: from then on it waits for a worker. Returns the new row.
-- Locks: none.
-- Callers: trigger turns_admitted on turns.

CREATE OR REPLACE FUNCTION note_admitted() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    NEW.admitted_at := now();
    RETURN NEW;
END $$;
