-- Who changed what. The triggers write one row a change, as before, now also for servers, revocations and settings. A command
-- of Guardian then covers the rows of its own transaction with a record that names who made the change, hashed into the chain
-- of the environment. A row that no record covers was written by another program. Whoever can open the file can forge all of
-- it: the chain shows what was changed afterwards.
CREATE TABLE change_chain (
  environment TEXT PRIMARY KEY,
  incarnation BLOB NOT NULL DEFAULT (randomblob(16)) CHECK (length(incarnation) = 16),
  next        INTEGER NOT NULL DEFAULT 0,                    -- seq of the next record
  head        BLOB NOT NULL DEFAULT (zeroblob(32)) CHECK (length(head) = 32)
) STRICT, WITHOUT ROWID;

-- The rows that triggers wrote into audit_trail from this migration on, each with the record that covers it.
CREATE TABLE recorded_changes (
  seq         INTEGER PRIMARY KEY,
  environment TEXT NOT NULL,
  incarnation BLOB,
  record      INTEGER,
  CHECK ((incarnation IS NULL) = (record IS NULL))
) STRICT;
CREATE INDEX unhashed_changes ON recorded_changes (environment) WHERE record IS NULL;
CREATE INDEX covered_changes ON recorded_changes (incarnation, record) WHERE record IS NOT NULL;
CREATE TRIGGER recorded_no_update BEFORE UPDATE ON recorded_changes
  WHEN OLD.record IS NOT NULL OR NEW.record IS NULL OR NEW.seq <> OLD.seq OR NEW.environment <> OLD.environment
  BEGIN SELECT RAISE(ABORT, 'recorded_changes is append-only: UPDATE refused'); END;
CREATE TRIGGER recorded_no_delete BEFORE DELETE ON recorded_changes
  BEGIN SELECT RAISE(ABORT, 'recorded_changes is append-only: DELETE refused'); END;

DROP TRIGGER own_record_insert;
CREATE TRIGGER own_record_insert INSTEAD OF INSERT ON own_record BEGIN
  INSERT INTO recorded_changes (seq, environment)
  SELECT max(ifnull((SELECT max(seq) FROM recorded_changes), -1),
             ifnull((SELECT max(seq) FROM audit_trail WHERE incarnation = zeroblob(16)), -1)) + 1, NEW.environment;
  INSERT INTO audit_trail (incarnation, seq, occurred_at, environment, kind, reason, user_id, server_name, method, change)
  SELECT zeroblob(16), (SELECT max(seq) FROM recorded_changes), (SELECT micros FROM clock), NEW.environment, 'admin', NEW.op,
         NEW.user_id, NEW.server_name, NEW.relation, NEW.change;
END;

-- The environments that a change of all of them is told to.
CREATE VIEW known_environments AS SELECT environment FROM change_chain UNION SELECT environment FROM users;

DROP TRIGGER own_user_i;
DROP TRIGGER own_user_u;
DROP TRIGGER own_user_d;
CREATE TRIGGER own_user_i AFTER INSERT ON users BEGIN
  INSERT INTO own_record (environment, user_id, relation, op, change)
  VALUES (NEW.environment, NEW.id, 'users', 'insert', json_object('new', json_object('id', NEW.id, 'kind', NEW.kind,
    'email', NEW.email, 'display_name', NEW.display_name, 'roles', json(NEW.roles), 'status', NEW.status))); END;
CREATE TRIGGER own_user_u AFTER UPDATE ON users BEGIN
  INSERT INTO own_record (environment, user_id, relation, op, change)
  VALUES (NEW.environment, NEW.id, 'users', 'update', json_object(
    'old', json_object('id', OLD.id, 'kind', OLD.kind, 'email', OLD.email, 'display_name', OLD.display_name, 'roles', json(OLD.roles),
      'status', OLD.status),
    'new', json_object('id', NEW.id, 'kind', NEW.kind, 'email', NEW.email, 'display_name', NEW.display_name, 'roles', json(NEW.roles),
      'status', NEW.status))); END;
CREATE TRIGGER own_user_d AFTER DELETE ON users BEGIN
  INSERT INTO own_record (environment, user_id, relation, op, change)
  VALUES (OLD.environment, OLD.id, 'users', 'delete', json_object('old', json_object('id', OLD.id, 'kind', OLD.kind,
    'email', OLD.email, 'display_name', OLD.display_name, 'roles', json(OLD.roles), 'status', OLD.status))); END;

-- what a server offers is no change of who may do what; each column of an approval is
DROP TRIGGER own_pin_i;
DROP TRIGGER own_pin_u;
CREATE TRIGGER own_pin_i AFTER INSERT ON server_tools WHEN NEW.pinned_digest IS NOT NULL BEGIN
  INSERT INTO own_record (environment, server_name, relation, op, change)
  VALUES (NEW.environment, NEW.server, 'server_tools', 'insert', json_object('new', json_object('server', NEW.server,
    'tool', NEW.tool, 'pinned_digest', lower(hex(NEW.pinned_digest)), 'pinned_by', NEW.pinned_by))); END;
CREATE TRIGGER own_pin_u AFTER UPDATE ON server_tools
  WHEN NEW.pinned_digest IS NOT OLD.pinned_digest OR NEW.pinned_definition IS NOT OLD.pinned_definition
    OR NEW.pinned_at IS NOT OLD.pinned_at OR NEW.pinned_by IS NOT OLD.pinned_by OR NEW.tool <> OLD.tool OR NEW.server <> OLD.server
    OR NEW.environment <> OLD.environment BEGIN
  INSERT INTO own_record (environment, server_name, relation, op, change)
  VALUES (NEW.environment, NEW.server, 'server_tools', 'update', json_object(
    'old', json_object('server', OLD.server, 'tool', OLD.tool, 'pinned_digest', lower(hex(OLD.pinned_digest)), 'pinned_by', OLD.pinned_by),
    'new', json_object('server', NEW.server, 'tool', NEW.tool, 'pinned_digest', lower(hex(NEW.pinned_digest)), 'pinned_by', NEW.pinned_by,
      'definition_changed', json(iif(NEW.pinned_definition IS NOT OLD.pinned_definition, 'true', 'false'))))); END;
CREATE TRIGGER own_pin_d AFTER DELETE ON server_tools WHEN OLD.pinned_digest IS NOT NULL BEGIN
  INSERT INTO own_record (environment, server_name, relation, op, change)
  VALUES (OLD.environment, OLD.server, 'server_tools', 'delete', json_object('old', json_object('server', OLD.server,
    'tool', OLD.tool, 'pinned_digest', lower(hex(OLD.pinned_digest)), 'pinned_by', OLD.pinned_by))); END;

CREATE TRIGGER own_registry_i AFTER INSERT ON mcp_registry BEGIN
  INSERT INTO own_record (environment, server_name, relation, op, change)
  VALUES (NEW.environment, NEW.id, 'mcp_registry', 'insert', json_object('new', json_object('id', NEW.id, 'name', NEW.name,
    'url', NEW.url, 'type', NEW.type, 'enabled', json(iif(NEW.enabled, 'true', 'false')), 'tool_scopes', json(NEW.tool_scopes)))); END;
CREATE TRIGGER own_registry_u AFTER UPDATE ON mcp_registry
  WHEN (NEW.environment, NEW.id, NEW.name, NEW.url, NEW.type, NEW.enabled, NEW.tool_scopes)
    IS NOT (OLD.environment, OLD.id, OLD.name, OLD.url, OLD.type, OLD.enabled, OLD.tool_scopes) BEGIN
  INSERT INTO own_record (environment, server_name, relation, op, change)
  VALUES (NEW.environment, NEW.id, 'mcp_registry', 'update', json_object(
    'old', json_object('id', OLD.id, 'name', OLD.name, 'url', OLD.url, 'type', OLD.type, 'enabled',
      json(iif(OLD.enabled, 'true', 'false')), 'tool_scopes', json(OLD.tool_scopes)),
    'new', json_object('id', NEW.id, 'name', NEW.name, 'url', NEW.url, 'type', NEW.type, 'enabled',
      json(iif(NEW.enabled, 'true', 'false')), 'tool_scopes', json(NEW.tool_scopes)))); END;
CREATE TRIGGER own_registry_d AFTER DELETE ON mcp_registry BEGIN
  INSERT INTO own_record (environment, server_name, relation, op, change)
  VALUES (OLD.environment, OLD.id, 'mcp_registry', 'delete', json_object('old', json_object('id', OLD.id, 'name', OLD.name,
    'url', OLD.url, 'type', OLD.type, 'enabled', json(iif(OLD.enabled, 'true', 'false')), 'tool_scopes', json(OLD.tool_scopes)))); END;

CREATE TRIGGER own_revocation_i AFTER INSERT ON revocations BEGIN
  INSERT INTO own_record (environment, relation, op, change)
  VALUES (NEW.environment, 'revocations', 'insert', json_object('new', json_object('issuer', NEW.issuer, 'kind', NEW.kind,
    'value', NEW.value, 'issued_before', NEW.issued_before, 'expires_at', NEW.expires_at, 'reason', NEW.reason))); END;
CREATE TRIGGER own_revocation_u AFTER UPDATE ON revocations
  WHEN (NEW.environment, NEW.issuer, NEW.kind, NEW.value, NEW.issued_before, NEW.expires_at, NEW.reason)
    IS NOT (OLD.environment, OLD.issuer, OLD.kind, OLD.value, OLD.issued_before, OLD.expires_at, OLD.reason) BEGIN
  INSERT INTO own_record (environment, relation, op, change)
  VALUES (NEW.environment, 'revocations', 'update', json_object(
    'old', json_object('issuer', OLD.issuer, 'kind', OLD.kind, 'value', OLD.value, 'issued_before', OLD.issued_before,
      'expires_at', OLD.expires_at, 'reason', OLD.reason),
    'new', json_object('issuer', NEW.issuer, 'kind', NEW.kind, 'value', NEW.value, 'issued_before', NEW.issued_before,
      'expires_at', NEW.expires_at, 'reason', NEW.reason))); END;
CREATE TRIGGER own_revocation_d AFTER DELETE ON revocations BEGIN
  INSERT INTO own_record (environment, relation, op, change)
  VALUES (OLD.environment, 'revocations', 'delete', json_object('old', json_object('issuer', OLD.issuer, 'kind', OLD.kind,
    'value', OLD.value, 'issued_before', OLD.issued_before, 'expires_at', OLD.expires_at, 'reason', OLD.reason))); END;

CREATE TRIGGER own_setting_i AFTER INSERT ON settings BEGIN
  INSERT INTO own_record (environment, relation, op, change)
  SELECT environment, 'settings', 'insert', json_object('new', json_object('key', NEW.key, 'value', NEW.value))
  FROM known_environments; END;
CREATE TRIGGER own_setting_u AFTER UPDATE ON settings BEGIN
  INSERT INTO own_record (environment, relation, op, change)
  SELECT environment, 'settings', 'update', json_object('old', json_object('key', OLD.key, 'value', OLD.value),
    'new', json_object('key', NEW.key, 'value', NEW.value)) FROM known_environments; END;
CREATE TRIGGER own_setting_d AFTER DELETE ON settings BEGIN
  INSERT INTO own_record (environment, relation, op, change)
  SELECT environment, 'settings', 'delete', json_object('old', json_object('key', OLD.key, 'value', OLD.value))
  FROM known_environments; END;
