-- Renames columns to the words that STYLE and the documentation use, and changes the values of turns.admission in the open turns.
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
SET LOCAL ROLE turnline_maintenance;  -- row-level security hides every turn from the owner
UPDATE turns SET admission = CASE admission WHEN 'behind' THEN 'blocked' WHEN 'waiting' THEN 'pending' ELSE 'admitted' END
WHERE status IN ('queued', 'running', 'waiting');
SET LOCAL ROLE turnline_owner;
