-- Neural Guardian on SQLite (STRICT tables). Same tables, names and meanings as on Postgres; differences:
--   * no roles and no row security: whoever can open the file can do anything. It belongs to the proxy's own user, mode
--     0600, and the hash chain of the journal is what shows tampering.
--   * one writer at a time, so AUTOINCREMENT order is commit order and no commit-time lock is needed for the change feed.
--   * times are integer microseconds since 1970 UTC; UUIDs are lower-case text; sets and lists are JSON.
-- Written for SQLite 3.38 too, so that an operator's own shell can revoke by hand.

CREATE VIEW clock AS SELECT CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) * 1000 AS micros;

CREATE TABLE settings (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
INSERT INTO settings VALUES ('audit_retention_days', '400');

-- ---------------------------------------------------------------- people
CREATE TABLE users (
  environment  TEXT NOT NULL DEFAULT 'default',
  id           TEXT NOT NULL CHECK (length(id) = 36 AND id = lower(id)),
  kind         TEXT NOT NULL DEFAULT 'user' CHECK (kind IN ('user', 'service')),
  email        TEXT,
  display_name TEXT,
  roles        TEXT NOT NULL DEFAULT '[]' CHECK (json_valid(roles) AND json_type(roles) = 'array'),
  status       TEXT NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'disabled')),
  created_at   INTEGER NOT NULL DEFAULT (CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) * 1000),
  PRIMARY KEY (environment, id)
) STRICT, WITHOUT ROWID;

CREATE TABLE user_identities (
  environment TEXT NOT NULL DEFAULT 'default',
  issuer      TEXT NOT NULL,
  subject     TEXT NOT NULL,
  user_id     TEXT NOT NULL,
  linked_at   INTEGER NOT NULL DEFAULT (CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) * 1000),
  PRIMARY KEY (environment, issuer, subject),
  FOREIGN KEY (environment, user_id) REFERENCES users (environment, id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
CREATE INDEX user_identities_user ON user_identities (environment, user_id);

-- ---------------------------------------------------------------- servers and their tools
CREATE TABLE mcp_registry (
  environment TEXT NOT NULL DEFAULT 'default',
  id          TEXT NOT NULL,
  name        TEXT NOT NULL,
  url         TEXT,
  type        TEXT NOT NULL DEFAULT 'server' CHECK (type IN ('server', 'tool', 'client')),
  enabled     INTEGER NOT NULL DEFAULT 1 CHECK (enabled IN (0, 1)),
  tool_scopes TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(tool_scopes) AND json_type(tool_scopes) = 'object'),
  created_at  INTEGER NOT NULL DEFAULT (CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) * 1000),
  PRIMARY KEY (environment, id)
) STRICT, WITHOUT ROWID;

-- What each server offers and what somebody approved. Rows change only when the offer or the pin does.
CREATE TABLE server_tools (
  environment        TEXT NOT NULL DEFAULT 'default',
  server             TEXT NOT NULL,
  tool               TEXT NOT NULL,
  offered_definition TEXT,
  offered_digest     BLOB CHECK (offered_digest IS NULL OR length(offered_digest) = 32),
  offered_since      INTEGER NOT NULL DEFAULT (CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) * 1000),
  pinned_definition  TEXT,
  pinned_digest      BLOB CHECK (pinned_digest IS NULL OR length(pinned_digest) = 32),
  pinned_at          INTEGER,
  pinned_by          TEXT,
  PRIMARY KEY (environment, server, tool),
  CHECK ((offered_definition IS NULL) = (offered_digest IS NULL)),
  CHECK ((pinned_definition IS NULL) = (pinned_digest IS NULL))
) STRICT, WITHOUT ROWID;

-- ---------------------------------------------------------------- grants, keys, revocations
CREATE TABLE mcp_authorizations (
  id          TEXT PRIMARY KEY,
  environment TEXT NOT NULL DEFAULT 'default',
  user_id     TEXT NOT NULL,
  server_name TEXT NOT NULL,
  client_id   TEXT,                        -- NULL: any OAuth client of this user
  status      TEXT NOT NULL DEFAULT 'idle' CHECK (status IN ('idle', 'verified', 'revoked')),
  verified    INTEGER GENERATED ALWAYS AS (status = 'verified') VIRTUAL,
  scopes      TEXT NOT NULL DEFAULT '[]' CHECK (json_valid(scopes) AND json_type(scopes) = 'array'),
  expires_at  INTEGER,
  revoked_at  INTEGER,
  row_version INTEGER NOT NULL DEFAULT 1,
  created_at  INTEGER NOT NULL DEFAULT (CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) * 1000),
  updated_at  INTEGER NOT NULL DEFAULT (CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) * 1000),
  FOREIGN KEY (environment, user_id) REFERENCES users (environment, id) ON DELETE CASCADE
) STRICT;
CREATE UNIQUE INDEX one_grant ON mcp_authorizations (environment, user_id, server_name, ifnull(client_id, ''));

CREATE TABLE api_keys (
  key_id         TEXT PRIMARY KEY,         -- public part of the key, to find the row
  environment    TEXT NOT NULL DEFAULT 'default',
  user_id        TEXT NOT NULL,
  name           TEXT NOT NULL DEFAULT '',
  key_hash       BLOB NOT NULL CHECK (length(key_hash) = 32),
  pepper_version INTEGER NOT NULL DEFAULT 1,
  scopes         TEXT NOT NULL DEFAULT '[]' CHECK (json_valid(scopes) AND json_type(scopes) = 'array'),
  created_at     INTEGER NOT NULL DEFAULT (CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) * 1000),
  expires_at     INTEGER,
  revoked_at     INTEGER,
  FOREIGN KEY (environment, user_id) REFERENCES users (environment, id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
CREATE INDEX api_keys_user ON api_keys (environment, user_id);

CREATE TABLE revocations (
  environment   TEXT NOT NULL DEFAULT 'default',
  issuer        TEXT NOT NULL,
  kind          TEXT NOT NULL CHECK (kind IN ('subject', 'session', 'client', 'jti')),
  value         TEXT NOT NULL,
  issued_before INTEGER NOT NULL DEFAULT (CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) * 1000),
  expires_at    INTEGER NOT NULL DEFAULT (CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) * 1000 + 86400000000),
  reason        TEXT,
  PRIMARY KEY (environment, issuer, kind, value)
) STRICT, WITHOUT ROWID;

-- ---------------------------------------------------------------- the audit trail
-- One row a record of the journal, keyed by (incarnation, seq). Every other column is derived from `bytes`. Rows without
-- bytes are the database's own (incarnation of zeros): who changed which grant, key, user, identity or pin.
CREATE TABLE audit_trail (
  incarnation  BLOB NOT NULL CHECK (length(incarnation) = 16),
  seq          INTEGER NOT NULL CHECK (seq >= 0),
  occurred_at  INTEGER NOT NULL,
  recorded_at  INTEGER NOT NULL DEFAULT (CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) * 1000),
  recorded_by  TEXT NOT NULL DEFAULT 'embedded',
  environment  TEXT NOT NULL,
  kind         TEXT NOT NULL CHECK (kind IN ('start', 'decision', 'outcome', 'policy', 'admin', 'suppressed', 'stop', 'opaque')),
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
  change       TEXT CHECK (change IS NULL OR json_valid(change)),
  bytes        BLOB, leaf BLOB, head BLOB,
  PRIMARY KEY (incarnation, seq),
  CHECK ((bytes IS NULL) = (incarnation = zeroblob(16)))
) STRICT;
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

CREATE TRIGGER own_grant_i AFTER INSERT ON mcp_authorizations BEGIN
  INSERT INTO own_record (environment, user_id, server_name, relation, op, change)
  VALUES (NEW.environment, NEW.user_id, NEW.server_name, 'mcp_authorizations', 'insert', json_object('new', json_object(
    'id', NEW.id, 'client_id', NEW.client_id, 'status', NEW.status, 'scopes', json(NEW.scopes), 'expires_at', NEW.expires_at))); END;
CREATE TRIGGER own_grant_u AFTER UPDATE ON mcp_authorizations WHEN NEW.row_version = OLD.row_version BEGIN
  INSERT INTO own_record (environment, user_id, server_name, relation, op, change)
  VALUES (NEW.environment, NEW.user_id, NEW.server_name, 'mcp_authorizations', 'update', json_object(
    'old', json_object('id', OLD.id, 'client_id', OLD.client_id, 'status', OLD.status, 'scopes', json(OLD.scopes), 'expires_at', OLD.expires_at),
    'new', json_object('id', NEW.id, 'client_id', NEW.client_id, 'status', NEW.status, 'scopes', json(NEW.scopes), 'expires_at', NEW.expires_at))); END;
CREATE TRIGGER own_grant_d AFTER DELETE ON mcp_authorizations BEGIN
  INSERT INTO own_record (environment, user_id, server_name, relation, op, change)
  VALUES (OLD.environment, OLD.user_id, OLD.server_name, 'mcp_authorizations', 'delete', json_object('old', json_object(
    'id', OLD.id, 'client_id', OLD.client_id, 'status', OLD.status, 'scopes', json(OLD.scopes), 'expires_at', OLD.expires_at))); END;

CREATE TRIGGER own_key_i AFTER INSERT ON api_keys BEGIN
  INSERT INTO own_record (environment, user_id, relation, op, change)
  VALUES (NEW.environment, NEW.user_id, 'api_keys', 'insert', json_object('new', json_object(
    'key_id', NEW.key_id, 'name', NEW.name, 'scopes', json(NEW.scopes), 'expires_at', NEW.expires_at))); END;
CREATE TRIGGER own_key_u AFTER UPDATE ON api_keys BEGIN
  INSERT INTO own_record (environment, user_id, relation, op, change)
  VALUES (NEW.environment, NEW.user_id, 'api_keys', 'update', json_object(
    'old', json_object('key_id', OLD.key_id, 'name', OLD.name, 'scopes', json(OLD.scopes), 'expires_at', OLD.expires_at, 'revoked_at', OLD.revoked_at),
    'new', json_object('key_id', NEW.key_id, 'name', NEW.name, 'scopes', json(NEW.scopes), 'expires_at', NEW.expires_at, 'revoked_at', NEW.revoked_at))); END;
CREATE TRIGGER own_key_d AFTER DELETE ON api_keys BEGIN
  INSERT INTO own_record (environment, user_id, relation, op, change)
  VALUES (OLD.environment, OLD.user_id, 'api_keys', 'delete', json_object('old', json_object('key_id', OLD.key_id, 'name', OLD.name))); END;

CREATE TRIGGER own_user_i AFTER INSERT ON users BEGIN
  INSERT INTO own_record (environment, user_id, relation, op, change)
  VALUES (NEW.environment, NEW.id, 'users', 'insert', json_object('new', json_object(
    'kind', NEW.kind, 'email', NEW.email, 'roles', json(NEW.roles), 'status', NEW.status))); END;
CREATE TRIGGER own_user_u AFTER UPDATE ON users BEGIN
  INSERT INTO own_record (environment, user_id, relation, op, change)
  VALUES (NEW.environment, NEW.id, 'users', 'update', json_object(
    'old', json_object('id', OLD.id, 'kind', OLD.kind, 'email', OLD.email, 'roles', json(OLD.roles), 'status', OLD.status),
    'new', json_object('id', NEW.id, 'kind', NEW.kind, 'email', NEW.email, 'roles', json(NEW.roles), 'status', NEW.status))); END;
CREATE TRIGGER own_user_d AFTER DELETE ON users BEGIN
  INSERT INTO own_record (environment, user_id, relation, op, change)
  VALUES (OLD.environment, OLD.id, 'users', 'delete', json_object('old', json_object('kind', OLD.kind, 'email', OLD.email))); END;

CREATE TRIGGER own_identity_i AFTER INSERT ON user_identities BEGIN
  INSERT INTO own_record (environment, user_id, relation, op, change)
  VALUES (NEW.environment, NEW.user_id, 'user_identities', 'insert', json_object('new', json_object('issuer', NEW.issuer, 'subject', NEW.subject))); END;
CREATE TRIGGER own_identity_u AFTER UPDATE ON user_identities BEGIN
  INSERT INTO own_record (environment, user_id, relation, op, change)
  VALUES (NEW.environment, NEW.user_id, 'user_identities', 'update', json_object(
    'old', json_object('user_id', OLD.user_id, 'issuer', OLD.issuer, 'subject', OLD.subject),
    'new', json_object('user_id', NEW.user_id, 'issuer', NEW.issuer, 'subject', NEW.subject))); END;
CREATE TRIGGER own_identity_d AFTER DELETE ON user_identities BEGIN
  INSERT INTO own_record (environment, user_id, relation, op, change)
  VALUES (OLD.environment, OLD.user_id, 'user_identities', 'delete', json_object('old', json_object('issuer', OLD.issuer, 'subject', OLD.subject))); END;

CREATE TRIGGER own_pin_i AFTER INSERT ON server_tools WHEN NEW.pinned_digest IS NOT NULL BEGIN
  INSERT INTO own_record (environment, server_name, relation, op, change)
  VALUES (NEW.environment, NEW.server, 'server_tools', 'insert', json_object(
    'new', json_object('tool', NEW.tool, 'pinned', lower(hex(NEW.pinned_digest)), 'by', NEW.pinned_by))); END;
CREATE TRIGGER own_pin_u AFTER UPDATE ON server_tools WHEN NEW.pinned_digest IS NOT OLD.pinned_digest BEGIN
  INSERT INTO own_record (environment, server_name, relation, op, change)
  VALUES (NEW.environment, NEW.server, 'server_tools', 'update', json_object(
    'old', json_object('tool', OLD.tool, 'pinned', lower(hex(OLD.pinned_digest)), 'by', OLD.pinned_by),
    'new', json_object('tool', NEW.tool, 'pinned', lower(hex(NEW.pinned_digest)), 'by', NEW.pinned_by))); END;

-- ---------------------------------------------------------------- change feed
-- Whoever sees position N has seen everything below it. `tag` shows a restored file.
CREATE TABLE change_log (
  seq         INTEGER PRIMARY KEY AUTOINCREMENT,
  tag         TEXT NOT NULL DEFAULT (lower(hex(randomblob(16)))),
  at          INTEGER NOT NULL DEFAULT (CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) * 1000),
  environment TEXT NOT NULL,
  relation    TEXT NOT NULL,               -- grant, key, user, identity, registry, revocation, catalogue
  op          TEXT NOT NULL CHECK (op IN ('I', 'U', 'D', 'T')),
  user_ref    TEXT,
  server_name TEXT,
  row_ref     TEXT
) STRICT;
CREATE INDEX change_log_env ON change_log (environment, seq);

CREATE TRIGGER grant_version AFTER UPDATE ON mcp_authorizations WHEN NEW.row_version = OLD.row_version BEGIN
  UPDATE mcp_authorizations SET row_version = OLD.row_version + 1, updated_at = (SELECT micros FROM clock),
    revoked_at = CASE WHEN NEW.status <> 'revoked' THEN NULL ELSE coalesce(OLD.revoked_at, (SELECT micros FROM clock)) END
  WHERE id = NEW.id; END;

CREATE TRIGGER feed_grant_i AFTER INSERT ON mcp_authorizations BEGIN
  INSERT INTO change_log (environment, relation, op, user_ref, server_name, row_ref)
    VALUES (NEW.environment, 'grant', 'I', NEW.user_id, NEW.server_name, NEW.id); END;
CREATE TRIGGER feed_grant_u AFTER UPDATE ON mcp_authorizations WHEN NEW.row_version = OLD.row_version BEGIN
  INSERT INTO change_log (environment, relation, op, user_ref, server_name, row_ref)
    SELECT OLD.environment, 'grant', 'U', OLD.user_id, OLD.server_name, OLD.id
    UNION SELECT NEW.environment, 'grant', 'U', NEW.user_id, NEW.server_name, NEW.id; END;
CREATE TRIGGER feed_grant_d AFTER DELETE ON mcp_authorizations BEGIN
  INSERT INTO change_log (environment, relation, op, user_ref, server_name, row_ref)
    VALUES (OLD.environment, 'grant', 'D', OLD.user_id, OLD.server_name, OLD.id); END;

CREATE TRIGGER feed_key_i AFTER INSERT ON api_keys BEGIN
  INSERT INTO change_log (environment, relation, op, user_ref, row_ref) VALUES (NEW.environment, 'key', 'I', NEW.user_id, NEW.key_id); END;
CREATE TRIGGER feed_key_u AFTER UPDATE ON api_keys BEGIN
  INSERT INTO change_log (environment, relation, op, user_ref, row_ref)
    SELECT OLD.environment, 'key', 'U', OLD.user_id, OLD.key_id UNION SELECT NEW.environment, 'key', 'U', NEW.user_id, NEW.key_id; END;
CREATE TRIGGER feed_key_d AFTER DELETE ON api_keys BEGIN
  INSERT INTO change_log (environment, relation, op, user_ref, row_ref) VALUES (OLD.environment, 'key', 'D', OLD.user_id, OLD.key_id); END;

CREATE TRIGGER feed_user_i AFTER INSERT ON users BEGIN
  INSERT INTO change_log (environment, relation, op, user_ref, row_ref) VALUES (NEW.environment, 'user', 'I', NEW.id, NEW.id); END;
CREATE TRIGGER feed_user_u AFTER UPDATE ON users BEGIN
  INSERT INTO change_log (environment, relation, op, user_ref, row_ref)
    SELECT OLD.environment, 'user', 'U', OLD.id, OLD.id UNION SELECT NEW.environment, 'user', 'U', NEW.id, NEW.id; END;
CREATE TRIGGER feed_user_d AFTER DELETE ON users BEGIN
  INSERT INTO change_log (environment, relation, op, user_ref, row_ref) VALUES (OLD.environment, 'user', 'D', OLD.id, OLD.id); END;

CREATE TRIGGER feed_identity_i AFTER INSERT ON user_identities BEGIN
  INSERT INTO change_log (environment, relation, op, user_ref, row_ref) VALUES (NEW.environment, 'identity', 'I', NEW.user_id, NEW.subject); END;
CREATE TRIGGER feed_identity_u AFTER UPDATE ON user_identities BEGIN
  INSERT INTO change_log (environment, relation, op, user_ref, row_ref)
    SELECT OLD.environment, 'identity', 'U', OLD.user_id, OLD.subject UNION SELECT NEW.environment, 'identity', 'U', NEW.user_id, NEW.subject; END;
CREATE TRIGGER feed_identity_d AFTER DELETE ON user_identities BEGIN
  INSERT INTO change_log (environment, relation, op, user_ref, row_ref) VALUES (OLD.environment, 'identity', 'D', OLD.user_id, OLD.subject); END;

CREATE TRIGGER feed_registry_i AFTER INSERT ON mcp_registry BEGIN
  INSERT INTO change_log (environment, relation, op, server_name, row_ref) VALUES (NEW.environment, 'registry', 'I', NEW.id, NEW.id); END;
CREATE TRIGGER feed_registry_u AFTER UPDATE ON mcp_registry BEGIN
  INSERT INTO change_log (environment, relation, op, server_name, row_ref)
    SELECT OLD.environment, 'registry', 'U', OLD.id, OLD.id UNION SELECT NEW.environment, 'registry', 'U', NEW.id, NEW.id; END;
CREATE TRIGGER feed_registry_d AFTER DELETE ON mcp_registry BEGIN
  INSERT INTO change_log (environment, relation, op, server_name, row_ref) VALUES (OLD.environment, 'registry', 'D', OLD.id, OLD.id); END;

CREATE TRIGGER feed_revocation_i AFTER INSERT ON revocations BEGIN
  INSERT INTO change_log (environment, relation, op, row_ref) VALUES (NEW.environment, 'revocation', 'I', NEW.value); END;
CREATE TRIGGER feed_revocation_u AFTER UPDATE ON revocations BEGIN
  INSERT INTO change_log (environment, relation, op, row_ref)
    SELECT OLD.environment, 'revocation', 'U', OLD.value UNION SELECT NEW.environment, 'revocation', 'U', NEW.value; END;
CREATE TRIGGER feed_revocation_d AFTER DELETE ON revocations BEGIN
  INSERT INTO change_log (environment, relation, op, row_ref) VALUES (OLD.environment, 'revocation', 'D', OLD.value); END;

CREATE TRIGGER feed_catalogue_i AFTER INSERT ON server_tools BEGIN
  INSERT INTO change_log (environment, relation, op, server_name, row_ref) VALUES (NEW.environment, 'catalogue', 'I', NEW.server, NEW.tool); END;
CREATE TRIGGER feed_catalogue_u AFTER UPDATE ON server_tools BEGIN
  INSERT INTO change_log (environment, relation, op, server_name, row_ref)
    SELECT OLD.environment, 'catalogue', 'U', OLD.server, OLD.tool UNION SELECT NEW.environment, 'catalogue', 'U', NEW.server, NEW.tool; END;
CREATE TRIGGER feed_catalogue_d AFTER DELETE ON server_tools BEGIN
  INSERT INTO change_log (environment, relation, op, server_name, row_ref) VALUES (OLD.environment, 'catalogue', 'D', OLD.server, OLD.tool); END;

-- ---------------------------------------------------------------- the contract the proxy reads
CREATE VIEW grants AS
  SELECT environment, user_id AS user_ref, server_name, client_id, status, scopes, expires_at, id AS grant_ref, row_version
  FROM mcp_authorizations;
