-- Functions that a trigger or an aggregate uses are renamed; the others get a new text under their new name.
ALTER FUNCTION note_granted() RENAME TO note_admitted;
ALTER FUNCTION histogram_put(bigint[], integer, integer) RENAME TO histogram_add;
ALTER FUNCTION histogram_said(bigint[]) RENAME TO histogram_to_json;
DO $$
DECLARE
    f record;
BEGIN
    FOR f IN SELECT p.oid::regprocedure AS name, p.proowner::regrole AS owner FROM pg_proc p WHERE p.pronamespace = 'public'::regnamespace AND p.proname IN (
        'accept_message', 'budget_said', 'cancel_turns', 'claim_turn', 'decide_approval', 'ending_of', 'hand_on', 'mark_rung', 'pressure',
        'redrive_turn', 'release_session', 'reserve_budgets', 'ring_first', 'say_as_person', 'set_mode', 'standing', 'stop_turn', 'stops_of', 'turn_heard',
        'turn_upper', 'write_turn')
    LOOP
        EXECUTE format('SET LOCAL ROLE %s', f.owner);
        EXECUTE format('DROP FUNCTION %s', f.name);
    END LOOP;
    SET LOCAL ROLE turnline_owner;
END $$;
