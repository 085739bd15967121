-- What decisions were made by: each policy set and each catalogue, and the texts that they are made of, once under its own
-- hash. Records name them as policy_set and catalogue. SQLite has no SHA-256: the hash is checked when a document is read.
CREATE TABLE policy_documents (
  environment TEXT NOT NULL,
  kind        TEXT NOT NULL CHECK (kind IN ('policy_set', 'policy_file', 'catalogue', 'tool')),
  digest      BLOB NOT NULL CHECK (length(digest) = 32),
  content     BLOB NOT NULL CHECK (length(content) <= 16777216),
  recorded_at INTEGER NOT NULL DEFAULT (CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) * 1000),
  recorded_by TEXT NOT NULL DEFAULT 'embedded',
  PRIMARY KEY (environment, kind, digest)
) STRICT;
CREATE TRIGGER documents_no_update BEFORE UPDATE ON policy_documents
  BEGIN SELECT RAISE(ABORT, 'policy_documents is append-only: UPDATE refused'); END;
CREATE TRIGGER documents_no_delete BEFORE DELETE ON policy_documents
  BEGIN SELECT RAISE(ABORT, 'policy_documents is append-only: DELETE refused'); END;

-- 32 random bytes of each person, from which and from a secret outside the database the key is derived that digests and seals
-- the arguments of their calls. A row that is deleted takes the meaning of all of them with it; it is tied to no row of
-- users, so that deleting a user alone does not.
CREATE TABLE audit_salts (
  environment TEXT NOT NULL,
  user_id     TEXT NOT NULL,
  salt        BLOB NOT NULL CHECK (length(salt) = 32),
  made_at     INTEGER NOT NULL DEFAULT (CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) * 1000),
  PRIMARY KEY (environment, user_id)
) STRICT, WITHOUT ROWID;
CREATE TRIGGER give_salt AFTER INSERT ON users BEGIN
  INSERT OR IGNORE INTO audit_salts (environment, user_id, salt) VALUES (NEW.environment, NEW.id, randomblob(32)); END;
INSERT INTO audit_salts (environment, user_id, salt) SELECT environment, id, randomblob(32) FROM users;

-- An erased salt is told of like a change of its user, so that a running instance drops the keys at once.
CREATE TRIGGER feed_salt_u AFTER UPDATE ON audit_salts BEGIN
  INSERT INTO change_log (environment, relation, op, user_ref, row_ref) VALUES (NEW.environment, 'user', 'U', NEW.user_id, NEW.user_id); END;
CREATE TRIGGER feed_salt_d AFTER DELETE ON audit_salts BEGIN
  INSERT INTO change_log (environment, relation, op, user_ref, row_ref) VALUES (OLD.environment, 'user', 'U', OLD.user_id, OLD.user_id); END;

-- Whoever erases a salt takes the meaning of records with it: that is a change like any other.
CREATE TRIGGER own_salt_u AFTER UPDATE ON audit_salts BEGIN
  INSERT INTO own_record (environment, user_id, relation, op, change)
  VALUES (NEW.environment, NEW.user_id, 'audit_salts', 'update', json_object(
    'old', json_object('user_id', OLD.user_id), 'new', json_object('user_id', NEW.user_id))); END;
CREATE TRIGGER own_salt_d AFTER DELETE ON audit_salts BEGIN
  INSERT INTO own_record (environment, user_id, relation, op, change)
  VALUES (OLD.environment, OLD.user_id, 'audit_salts', 'delete', json_object('old', json_object('user_id', OLD.user_id))); END;
