-- What a record says more: whether the tool may have run, who made a change, and records of gaps and conflicts.
SET LOCAL ROLE guardian_owner;

ALTER TABLE guardian.audit_trail
  ADD COLUMN executed   text CHECK (executed IN ('no', 'yes', 'unknown')),  -- of an outcome
  ADD COLUMN actor      text,                                               -- of a change: who made it
  ADD COLUMN claimed_by text;                                               -- of a change: who they say they are
ALTER TABLE guardian.audit_trail
  DROP CONSTRAINT audit_trail_kind_check,
  ADD CONSTRAINT audit_trail_kind_check CHECK (kind IN
    ('start', 'decision', 'outcome', 'policy', 'admin', 'suppressed', 'stop', 'opaque', 'gap', 'conflict'));
GRANT INSERT (executed, actor, claimed_by) ON guardian.audit_trail TO guardian_proxy;
RESET ROLE;
