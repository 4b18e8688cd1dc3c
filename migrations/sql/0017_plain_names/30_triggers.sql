-- A turn that is admitted waits for a worker from then on. A settled turn is never admitted; the migration that renames the values of
-- settled turns leaves their times as they are.
CREATE TRIGGER turns_admitted BEFORE UPDATE OF admission ON turns
    FOR EACH ROW WHEN (NEW.admission = 'admitted' AND OLD.admission <> 'admitted' AND NEW.settled_at IS NULL)
    EXECUTE FUNCTION note_admitted();
