-- Renames columns to the words that STYLE and the documentation use, and the values of turns.admission.
DROP TRIGGER turns_granted ON turns;
DROP INDEX ix_turns_granted;
DROP INDEX ix_turns_unrung;
ALTER TABLE turns RENAME COLUMN rung_at TO dispatched_at;
ALTER TABLE turns RENAME COLUMN rings TO dispatch_count;
ALTER TABLE turns RENAME COLUMN place TO admission;
ALTER TABLE turns RENAME COLUMN granted_at TO admitted_at;
ALTER TABLE turns RENAME COLUMN carried_s TO running_s;
ALTER TABLE usage_facts RENAME COLUMN carried_ms TO running_ms;
ALTER TABLE turns ALTER COLUMN admission SET DEFAULT 'pending';
UPDATE turns SET admission = CASE admission WHEN 'behind' THEN 'blocked' WHEN 'waiting' THEN 'pending' ELSE 'admitted' END;
CREATE INDEX ix_turns_admitted ON turns (workspace_id) WHERE admission = 'admitted' AND status IN ('queued', 'running');
CREATE INDEX ix_turns_pending ON turns (workspace_id, opened_at) WHERE admission = 'pending' AND status = 'queued';
