-- What decisions were made by: each policy set and each catalogue, and the texts that they are made of, once under its own
-- hash. Records name them as policy_set and catalogue. The hash is checked here, so that nothing can take another's place.
SET LOCAL ROLE guardian_owner;

CREATE TABLE guardian.policy_documents (
  environment text NOT NULL,
  kind        text NOT NULL CHECK (kind IN ('policy_set', 'policy_file', 'catalogue', 'tool')),
  digest      bytea NOT NULL,
  content     bytea NOT NULL CHECK (octet_length(content) <= 16777216),
  recorded_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  recorded_by name NOT NULL DEFAULT session_user,
  PRIMARY KEY (environment, kind, digest),
  CHECK (digest = sha256(content))
);
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON guardian.policy_documents
  FOR EACH ROW EXECUTE FUNCTION guardian.refuse_change();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON guardian.policy_documents
  FOR EACH STATEMENT EXECUTE FUNCTION guardian.refuse_change();

ALTER TABLE guardian.policy_documents ENABLE ROW LEVEL SECURITY;
CREATE POLICY proxy_appends ON guardian.policy_documents FOR INSERT TO guardian_proxy
  WITH CHECK (guardian.env_ok(environment, (SELECT guardian.environments_of(current_user))));
CREATE POLICY auditor_reads ON guardian.policy_documents FOR SELECT TO guardian_auditor
  USING (guardian.env_ok(environment, (SELECT guardian.environments_of(current_user))));
GRANT INSERT (environment, kind, digest, content) ON guardian.policy_documents TO guardian_proxy;
GRANT SELECT ON guardian.policy_documents TO guardian_auditor;

-- 32 random bytes of each person, from which and from a secret outside the database the key is derived that digests and seals
-- the arguments of their calls. A row that is deleted takes the meaning of all of them with it; it is tied to no row of
-- users, so that deleting a user alone does not. Users may be a view of another program's table.
CREATE TABLE guardian.audit_salts (
  environment text NOT NULL,
  user_id     uuid NOT NULL,
  salt        bytea NOT NULL CHECK (octet_length(salt) = 32),
  made_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (environment, user_id)
);
ALTER TABLE guardian.audit_salts ENABLE ROW LEVEL SECURITY;
CREATE POLICY proxy_reads ON guardian.audit_salts FOR SELECT TO guardian_proxy
  USING (guardian.env_ok(environment, (SELECT guardian.environments_of(current_user))));
CREATE POLICY admin_erases ON guardian.audit_salts FOR ALL TO guardian_admin
  USING (guardian.env_ok(environment, (SELECT guardian.environments_of(current_user))));
GRANT SELECT ON guardian.audit_salts TO guardian_proxy;
GRANT SELECT (environment, user_id, made_at), DELETE ON guardian.audit_salts TO guardian_admin;

-- gen_random_uuid draws from the server's strong generator; four of them have 488 random bits.
CREATE FUNCTION guardian.new_salt() RETURNS bytea LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
  SELECT sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())
             || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()))
$$;

CREATE FUNCTION guardian.give_salt() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  INSERT INTO guardian.audit_salts (environment, user_id, salt) VALUES (NEW.environment, NEW.id, guardian.new_salt())
    ON CONFLICT DO NOTHING;
  RETURN NULL;
END $$;
DO $$
BEGIN
  IF EXISTS (SELECT FROM pg_class WHERE oid = to_regclass('guardian.users') AND relkind IN ('r', 'p')) THEN
    CREATE TRIGGER give_salt AFTER INSERT ON guardian.users FOR EACH ROW EXECUTE FUNCTION guardian.give_salt();
  END IF;
END $$;

-- Where users come from another table, no trigger of ours sees them; the proxy asks for the missing ones when it starts.
CREATE FUNCTION guardian.give_salts(p_env text) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE given bigint;
BEGIN
  PERFORM guardian.require_environment(p_env);
  INSERT INTO guardian.audit_salts (environment, user_id, salt)
    SELECT u.environment, u.id, guardian.new_salt() FROM guardian.users u
     WHERE u.environment = p_env AND NOT EXISTS
       (SELECT FROM guardian.audit_salts s WHERE s.environment = u.environment AND s.user_id = u.id)
    ON CONFLICT DO NOTHING;
  GET DIAGNOSTICS given = ROW_COUNT;
  RETURN given;
END $$;
GRANT EXECUTE ON FUNCTION guardian.give_salts(text) TO guardian_proxy;

INSERT INTO guardian.audit_salts (environment, user_id, salt)
  SELECT environment, id, guardian.new_salt() FROM guardian.users;

-- An erased salt is told of like a change of its user, so that running instances drop the keys at once.
CREATE CONSTRAINT TRIGGER guardian_feed AFTER UPDATE OR DELETE ON guardian.audit_salts
  DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION guardian.emit_change('user', 'environment', 'user_id', '', 'user_id');

-- Whoever erases a salt takes the meaning of records with it: that is a change like any other.
CREATE TRIGGER own_record AFTER UPDATE OR DELETE ON guardian.audit_salts FOR EACH ROW EXECUTE FUNCTION guardian.own_record();
CREATE TRIGGER own_record_t AFTER TRUNCATE ON guardian.audit_salts FOR EACH STATEMENT EXECUTE FUNCTION guardian.own_record();

RESET ROLE;
