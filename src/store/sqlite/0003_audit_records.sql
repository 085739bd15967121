-- What a record says more: whether the tool may have run, who made a change, and records of gaps and conflicts. SQLite cannot
-- change the kinds of a table that is there, so its rows move into a new one.
DROP VIEW own_record;
CREATE TABLE moved_audit_trail AS SELECT * FROM audit_trail;
DROP TABLE audit_trail;

CREATE TABLE audit_trail (
  incarnation  BLOB NOT NULL CHECK (length(incarnation) = 16),
  seq          INTEGER NOT NULL CHECK (seq >= 0),
  occurred_at  INTEGER NOT NULL,
  recorded_at  INTEGER NOT NULL DEFAULT (CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) * 1000),
  recorded_by  TEXT NOT NULL DEFAULT 'embedded',
  environment  TEXT NOT NULL,
  kind         TEXT NOT NULL CHECK (kind IN ('start', 'decision', 'outcome', 'policy', 'admin', 'suppressed', 'stop', 'opaque',
                                    'gap', 'conflict')),
  request_id   TEXT,
  decision     TEXT CHECK (decision IN ('allow', 'deny')),
  reason       TEXT,
  user_id      TEXT, issuer TEXT, subject TEXT, auth_method TEXT, client_id TEXT, key_id TEXT,
  server_name  TEXT, method TEXT, tool_name TEXT,
  policies     TEXT CHECK (policies IS NULL OR json_valid(policies)),
  policy_set   BLOB,
  grant_seq    INTEGER, grant_age_ms INTEGER,
  source_ip    TEXT,
  ending       TEXT, status INTEGER, latency_us INTEGER,
  executed     TEXT CHECK (executed IN ('no', 'yes', 'unknown')),  -- of an outcome: whether the tool may have run
  actor        TEXT,                                                -- of a change: who made it
  claimed_by   TEXT,                                                -- of a change: who they say they are
  change       TEXT CHECK (change IS NULL OR json_valid(change)),
  bytes        BLOB, leaf BLOB, head BLOB,
  PRIMARY KEY (incarnation, seq),
  CHECK ((bytes IS NULL) = (incarnation = zeroblob(16)))
) STRICT;
INSERT INTO audit_trail (
  incarnation, seq, occurred_at, recorded_at, recorded_by, environment, kind, request_id, decision, reason, user_id, issuer,
  subject, auth_method, client_id, key_id, server_name, method, tool_name, policies, policy_set, grant_seq, grant_age_ms, source_ip,
  ending, status, latency_us, change, bytes, leaf, head)
SELECT
  incarnation, seq, occurred_at, recorded_at, recorded_by, environment, kind, request_id, decision, reason, user_id, issuer,
  subject, auth_method, client_id, key_id, server_name, method, tool_name, policies, policy_set, grant_seq, grant_age_ms, source_ip,
  ending, status, latency_us, change, bytes, leaf, head
FROM moved_audit_trail ORDER BY rowid;
DROP TABLE moved_audit_trail;

CREATE INDEX audit_time    ON audit_trail (environment, kind, occurred_at);
CREATE INDEX audit_user    ON audit_trail (environment, user_id, occurred_at) WHERE kind = 'decision';
CREATE INDEX audit_tool    ON audit_trail (environment, server_name, tool_name, occurred_at) WHERE kind = 'decision';
CREATE INDEX audit_refused ON audit_trail (environment, occurred_at) WHERE decision = 'deny';
CREATE INDEX audit_request ON audit_trail (request_id) WHERE request_id IS NOT NULL;

-- Append-only; rows may go only once they are older than the retention period.
CREATE TRIGGER audit_no_update BEFORE UPDATE ON audit_trail
  BEGIN SELECT RAISE(ABORT, 'audit_trail is append-only: UPDATE refused'); END;
CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit_trail
  WHEN OLD.occurred_at > (SELECT micros FROM clock)
       - 86400000000 * (SELECT max(30, CAST(value AS INTEGER)) FROM settings WHERE key = 'audit_retention_days')
  BEGIN SELECT RAISE(ABORT, 'audit_trail is append-only: DELETE refused'); END;

-- The database's own rows, written through this view so that each trigger below is one short statement.
CREATE VIEW own_record AS
  SELECT environment, user_id, server_name, method AS relation, reason AS op, change FROM audit_trail WHERE bytes IS NULL;
CREATE TRIGGER own_record_insert INSTEAD OF INSERT ON own_record BEGIN
  INSERT INTO audit_trail (incarnation, seq, occurred_at, environment, kind, reason, user_id, server_name, method, change)
  SELECT zeroblob(16), (SELECT ifnull(max(seq), -1) + 1 FROM audit_trail WHERE incarnation = zeroblob(16)),
         (SELECT micros FROM clock), NEW.environment, 'admin', NEW.op, NEW.user_id, NEW.server_name, NEW.relation, NEW.change;
END;
