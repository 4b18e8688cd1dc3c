CREATE TRIGGER turns_admitted BEFORE UPDATE OF admission ON turns
    FOR EACH ROW WHEN (NEW.admission = 'admitted' AND OLD.admission <> 'admitted') EXECUTE FUNCTION note_admitted();
