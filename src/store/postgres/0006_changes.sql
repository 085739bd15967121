-- Who changed what. The triggers write one row a change, as before, now also for servers, revocations, role bindings, dropped
-- partitions and emptied tables. A command of Guardian then covers the rows of its own transaction with a record that names
-- who made the change, hashed into the chain of the environment. A row that no record covers was written by another program.
SET LOCAL ROLE guardian_owner;

-- ---------------------------------------------------------------- the chain of an environment's changes
CREATE TABLE guardian.change_chain (
  environment text PRIMARY KEY,
  incarnation bytea NOT NULL DEFAULT uuid_send(gen_random_uuid()) CHECK (octet_length(incarnation) = 16),
  next        bigint NOT NULL DEFAULT 0,                    -- seq of the next record
  head        bytea NOT NULL DEFAULT decode(repeat('00', 32), 'hex') CHECK (octet_length(head) = 32)
);

-- The rows that triggers wrote into audit_trail from this migration on, each with the record that covers it. Earlier rows are
-- not in it: nobody could have covered them.
CREATE TABLE guardian.recorded_changes (
  seq         bigint PRIMARY KEY,
  environment text NOT NULL,
  xact        xid8 NOT NULL DEFAULT pg_current_xact_id(),
  incarnation bytea,
  record      bigint,
  CHECK ((incarnation IS NULL) = (record IS NULL))
);
CREATE INDEX unhashed_changes ON guardian.recorded_changes (environment, xact) WHERE record IS NULL;
CREATE INDEX covered_changes ON guardian.recorded_changes (incarnation, record) WHERE record IS NOT NULL;

CREATE FUNCTION guardian.keep_recorded_changes() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'UPDATE' AND OLD.record IS NULL AND NEW.record IS NOT NULL
     AND NEW.seq = OLD.seq AND NEW.environment = OLD.environment AND NEW.xact = OLD.xact THEN
    RETURN NEW;
  END IF;
  RAISE EXCEPTION '% is append-only: % refused', TG_TABLE_NAME, TG_OP USING ERRCODE = 'insufficient_privilege';
END $$;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON guardian.recorded_changes
  FOR EACH ROW EXECUTE FUNCTION guardian.keep_recorded_changes();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON guardian.recorded_changes
  FOR EACH STATEMENT EXECUTE FUNCTION guardian.refuse_change();

-- ---------------------------------------------------------------- one row a change
-- Kept where nobody can edit it. Secrets and long texts are cut out. A row that concerns every environment, or that moves from
-- one to another, is told to each.
CREATE OR REPLACE FUNCTION guardian.own_record() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  cut text[] := ARRAY['key_hash', 'offered_definition', 'pinned_definition', 'salt'];
  o jsonb; n jsonb; r jsonb; env text; number bigint;
BEGIN
  IF TG_OP = 'UPDATE' AND NEW IS NOT DISTINCT FROM OLD THEN RETURN NULL; END IF;
  IF TG_OP IN ('UPDATE', 'DELETE') THEN o := to_jsonb(OLD); END IF;
  IF TG_OP IN ('UPDATE', 'INSERT') THEN n := to_jsonb(NEW); END IF;
  IF TG_OP = 'UPDATE' AND n -> 'pinned_definition' IS DISTINCT FROM o -> 'pinned_definition' THEN
    n := n || '{"definition_changed": true}';
  END IF;
  o := o - cut; n := n - cut; r := coalesce(n, o, '{}');
  FOR env IN
    SELECT e FROM (SELECT j ->> 'environment' AS e FROM (VALUES (o), (n)) AS v(j) WHERE j ->> 'environment' <> '*'
             UNION SELECT c.environment FROM guardian.change_chain c WHERE coalesce(r ->> 'environment', '*') = '*'
             UNION SELECT b.environment FROM guardian.role_bindings b
                    WHERE coalesce(r ->> 'environment', '*') = '*' AND b.environment <> '*') AS known
     ORDER BY e
  LOOP
    number := nextval('guardian.own_seq');
    INSERT INTO guardian.audit_trail (incarnation, seq, occurred_at, environment, kind, reason, user_id, server_name, method, actor,
                                      change)
    VALUES ('\x00000000000000000000000000000000', number, clock_timestamp(), env, 'admin',
            lower(TG_OP), (r ->> CASE TG_TABLE_NAME WHEN 'users' THEN 'id' ELSE 'user_id' END)::uuid,
            coalesce(r ->> 'server_name', r ->> 'server', CASE TG_TABLE_NAME WHEN 'mcp_registry' THEN r ->> 'id' END), TG_TABLE_NAME,
            session_user, jsonb_strip_nulls(jsonb_build_object('old', o, 'new', n)));
    INSERT INTO guardian.recorded_changes (seq, environment) VALUES (number, env);
  END LOOP;
  RETURN NULL;
END $$;

-- A table that was replaced by a view of somebody else's is theirs to record.
DO $$
DECLARE t text;
BEGIN
  FOREACH t IN ARRAY ARRAY['mcp_authorizations', 'api_keys', 'users', 'user_identities', 'mcp_registry', 'revocations',
                           'server_tools', 'role_bindings', 'retention_log'] LOOP
    CONTINUE WHEN NOT EXISTS (SELECT FROM pg_class WHERE oid = to_regclass('guardian.' || t) AND relkind IN ('r', 'p'));
    IF t IN ('mcp_registry', 'revocations', 'role_bindings', 'retention_log') THEN
      EXECUTE format('CREATE TRIGGER own_record AFTER INSERT OR UPDATE OR DELETE ON guardian.%I
                      FOR EACH ROW EXECUTE FUNCTION guardian.own_record()', t);
    END IF;
    EXECUTE format('CREATE TRIGGER own_record_t AFTER TRUNCATE ON guardian.%I
                    FOR EACH STATEMENT EXECUTE FUNCTION guardian.own_record()', t);
  END LOOP;
  -- what a server offers is no change of who may do what; each column of an approval is
  IF EXISTS (SELECT FROM pg_class WHERE oid = to_regclass('guardian.server_tools') AND relkind IN ('r', 'p')) THEN
    DROP TRIGGER IF EXISTS own_record_u ON guardian.server_tools;
    CREATE TRIGGER own_record_u AFTER UPDATE ON guardian.server_tools FOR EACH ROW
      WHEN ((NEW.environment, NEW.server, NEW.tool, NEW.pinned_digest, NEW.pinned_definition, NEW.pinned_at, NEW.pinned_by)
        IS DISTINCT FROM (OLD.environment, OLD.server, OLD.tool, OLD.pinned_digest, OLD.pinned_definition, OLD.pinned_at, OLD.pinned_by))
      EXECUTE FUNCTION guardian.own_record();
    CREATE TRIGGER own_record_d AFTER DELETE ON guardian.server_tools FOR EACH ROW
      WHEN (OLD.pinned_digest IS NOT NULL) EXECUTE FUNCTION guardian.own_record();
  END IF;
END $$;

-- Reasons not to serve: a change would leave no row.
CREATE FUNCTION guardian.unrecorded_changes() RETURNS TABLE (problem text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT 'changes of ' || c.relname || ' are not recorded: trigger ' || w.name || ' is missing or disabled'
    FROM (SELECT unnest(ARRAY['mcp_authorizations', 'api_keys', 'users', 'user_identities', 'mcp_registry', 'revocations',
                              'role_bindings', 'retention_log']) AS relation, 'own_record' AS name
          UNION ALL SELECT 'server_tools', unnest(ARRAY['own_record_i', 'own_record_u', 'own_record_d'])
          UNION ALL SELECT unnest(ARRAY['mcp_authorizations', 'api_keys', 'users', 'user_identities', 'mcp_registry', 'revocations',
                                        'server_tools', 'role_bindings', 'retention_log']), 'own_record_t') AS w
    JOIN pg_class c ON c.oid = to_regclass('guardian.' || w.relation) AND c.relkind IN ('r', 'p')
   WHERE NOT EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = c.oid AND t.tgname = w.name AND t.tgenabled IN ('O', 'A')
                        AND t.tgfoid = to_regproc('guardian.own_record'))
  UNION ALL SELECT 'append-only trigger of recorded_changes is missing or disabled'
    WHERE NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = to_regclass('guardian.recorded_changes')
                         AND tgname = 'append_only' AND tgenabled IN ('O', 'A'))
$$;

-- ---------------------------------------------------------------- the records of commands
-- Whoever administers an environment, or owns the schema.
CREATE FUNCTION guardian.require_author(p_env text) RETURNS void
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF NOT pg_has_role(session_user, 'guardian_owner', 'MEMBER') THEN
    PERFORM guardian.require_environment(p_env);
  END IF;
END $$;

-- As before, also for whoever owns the schema: a command that asks a server for its tools writes them with the
-- administrator's login, since they are then part of that command's change.
CREATE OR REPLACE FUNCTION guardian.note_offer(p_env text, p_server text, p_tool text, p_digest bytea, p_definition text, p_pin boolean)
RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM guardian.require_author(p_env);
  INSERT INTO guardian.server_tools AS t (environment, server, tool, offered_digest, offered_definition,
                                          pinned_digest, pinned_definition, pinned_at, pinned_by)
  SELECT p_env, p_server, p_tool, p_digest, p_definition, CASE WHEN p_pin THEN p_digest END, CASE WHEN p_pin THEN p_definition END,
         CASE WHEN p_pin THEN now() END, CASE WHEN p_pin THEN 'first use' END
  ON CONFLICT (environment, server, tool) DO UPDATE SET
    offered_digest = excluded.offered_digest, offered_definition = excluded.offered_definition, offered_since = now(),
    pinned_definition = CASE WHEN t.pinned_digest IS NULL THEN excluded.pinned_definition ELSE t.pinned_definition END,
    pinned_at = CASE WHEN t.pinned_digest IS NULL THEN excluded.pinned_at ELSE t.pinned_at END,
    pinned_by = CASE WHEN t.pinned_digest IS NULL THEN excluded.pinned_by ELSE t.pinned_by END,
    pinned_digest = coalesce(t.pinned_digest, excluded.pinned_digest);
END $$;

-- What a record's digest of such a row is made from: the SHA-256 of this text.
CREATE FUNCTION guardian.own_row_text(a guardian.audit_trail) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT concat_ws(E'\n', a.seq, guardian.micros(a.occurred_at), a.environment, a.method, a.reason, coalesce(a.user_id::text, ''),
                   coalesce(a.server_name, ''), a.recorded_by, a.change::text)
$$;

-- The rows of this transaction that no record covers yet. By transaction and by time: a restored database counts its
-- transactions anew. The clock may have been set back meanwhile; a row that is missed for that would be committed unhashed, so
-- the rows are counted by what wrote them: a restored row was written by an earlier transaction, whatever it says.
CREATE FUNCTION guardian.own_changes(p_env text)
RETURNS TABLE (seq bigint, at bigint, relation text, op text, user_ref text, server_name text, change text, row_text text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  told bigint; written bigint;
BEGIN
  RETURN QUERY
    SELECT a.seq, guardian.micros(a.occurred_at), a.method, a.reason, a.user_id::text, a.server_name, a.change::text,
           guardian.own_row_text(a)
      FROM guardian.recorded_changes r
      JOIN guardian.audit_trail a ON a.incarnation = '\x00000000000000000000000000000000' AND a.seq = r.seq AND a.bytes IS NULL
       AND a.occurred_at >= now() - interval '10 minutes'
     WHERE r.environment = p_env AND r.record IS NULL AND r.xact = pg_current_xact_id_if_assigned()
     ORDER BY a.seq;
  GET DIAGNOSTICS told = ROW_COUNT;
  SELECT count(*) INTO written FROM guardian.recorded_changes r
   WHERE r.environment = p_env AND r.record IS NULL AND r.xact = pg_current_xact_id_if_assigned()
     AND age(r.xmin) <= age(pg_current_xact_id_if_assigned()::xid);
  IF told <> written THEN
    RAISE EXCEPTION '% changes of this transaction are on record, but % can be read: was the clock set back?', written, told;
  END IF;
END $$;

-- Where the chain stands, locked until the end of the transaction: two commands at once write one after the other.
CREATE FUNCTION guardian.lock_change_chain(p_env text)
RETURNS TABLE (incarnation bytea, next bigint, head bytea, login text, at bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
  PERFORM guardian.require_author(p_env);
  INSERT INTO guardian.change_chain (environment) VALUES (p_env) ON CONFLICT DO NOTHING;
  RETURN QUERY SELECT c.incarnation, c.next, c.head, session_user::text, guardian.micros(clock_timestamp())
    FROM guardian.change_chain c WHERE c.environment = p_env FOR UPDATE;
END $$;

-- Whether an object has each of its members once, and none that is not among these. jsonb would keep the last of two; the
-- programs that read records refuse both.
CREATE FUNCTION guardian.has_only(p_object json, p_members text[]) RETURNS boolean
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT json_typeof(p_object) = 'object'
     AND (SELECT count(*) = count(DISTINCT k) AND coalesce(bool_and(k = ANY (p_members)), true) FROM json_object_keys(p_object) k)
$$;

-- The event of a record of changes, where every program reads the same in it; an error otherwise.
CREATE FUNCTION guardian.event_of_changes(p_bytes bytea) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  r json; e json; actor json; x json; ok boolean;
BEGIN
  r := convert_from(p_bytes, 'UTF8')::json; e := r -> 'event'; actor := e -> 'actor';
  ok := get_byte(p_bytes, octet_length(p_bytes) - 1) = ascii('}')
    AND ARRAY(SELECT json_object_keys(r)) = ARRAY['v', 'incarnation', 'seq', 'prev', 'event']
    AND guardian.has_only(e, ARRAY['kind', 'at', 'environment', 'action', 'detail', 'actor', 'claimed_by', 'login', 'user', 'server',
                                   'changes'])
    AND json_typeof(e -> 'at') = 'number' AND e ->> 'at' ~ '^[0-9]{1,18}$'
    AND json_typeof(e -> 'environment') = 'string' AND json_typeof(e -> 'action') = 'string' AND json_typeof(e -> 'detail') = 'string'
    AND json_typeof(e -> 'login') = 'string'
    AND coalesce(json_typeof(e -> 'claimed_by'), 'string') = 'string' AND coalesce(json_typeof(e -> 'user'), 'string') = 'string'
    AND coalesce(json_typeof(e -> 'server'), 'string') = 'string' AND coalesce(json_typeof(e -> 'changes'), 'array') = 'array'
    AND guardian.has_only(actor, ARRAY['user', 'uid', 'host', 'sudo_user'])
    AND json_typeof(actor -> 'user') = 'string' AND json_typeof(actor -> 'host') = 'string'
    AND coalesce(json_typeof(actor -> 'sudo_user'), 'string') = 'string'
    AND json_typeof(actor -> 'uid') = 'number' AND actor ->> 'uid' ~ '^[0-9]{1,10}$' AND (actor ->> 'uid')::bigint <= 4294967295;
  FOR x IN SELECT json_array_elements(CASE WHEN ok THEN e -> 'changes' END) LOOP
    ok := ok AND guardian.has_only(x, ARRAY['seq', 'row', 'change', 'of', 'old', 'new'])
      AND json_typeof(x -> 'seq') = 'number' AND x ->> 'seq' ~ '^[0-9]{1,18}$' AND json_typeof(x -> 'row') = 'string'
      AND json_typeof(x -> 'change') = 'string' AND json_typeof(x -> 'of') = 'string';
  END LOOP;
  IF ok IS NOT TRUE THEN
    RAISE EXCEPTION 'this is no record of changes' USING ERRCODE = 'insufficient_privilege';
  END IF;
  RETURN e::jsonb;
END $$;

-- Whether a record's change says what the row says. Values that are too long for a record are left to the digest: 6000 bytes, as
-- the commands have it (LONGEST_CHANGE).
CREATE FUNCTION guardian.tells_of(p_change jsonb, a guardian.audit_trail) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT a.bytes IS NULL AND p_change ->> 'row' = encode(sha256(convert_to(guardian.own_row_text(a), 'UTF8')), 'hex')
     AND CASE WHEN octet_length(a.change::text) > 6000 THEN NOT p_change ?| ARRAY['old', 'new']
              ELSE p_change -> 'old' IS NOT DISTINCT FROM a.change -> 'old'
               AND p_change -> 'new' IS NOT DISTINCT FROM a.change -> 'new' END
$$;

-- Appends the next record of the chain. The database computes leaf and head, and believes nothing that it can check: the place
-- in the chain, the environment, the login, the time, and of each change that the record covers the user, the server, the
-- digest, the old and the new values, of a row that this very transaction wrote. What it cannot check is who sat at the command:
-- the user of the operating system, the host and the claimed name are the word of whoever holds an administrator's login. The
-- login itself is true. Nor does it check the words for a change; whoever shows the record takes them from the rows.
CREATE FUNCTION guardian.append_change(p_env text, p_bytes bytea) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  c guardian.change_chain; e jsonb; begins bytea; new_leaf bytea; new_head bytea; named bigint; covered bigint;
BEGIN
  PERFORM guardian.require_author(p_env);
  SELECT * INTO c FROM guardian.change_chain WHERE environment = p_env FOR UPDATE;
  begins := convert_to(format('{"v":2,"incarnation":"%s","seq":%s,"prev":"%s","event":{"kind":"admin",',
    encode(c.incarnation, 'hex'), c.next, encode(c.head, 'hex')), 'UTF8');
  IF octet_length(p_bytes) > 16384 OR substring(p_bytes FROM 1 FOR octet_length(begins)) IS DISTINCT FROM begins THEN
    RAISE EXCEPTION 'this is not the next record of changes in environment %', p_env USING ERRCODE = 'insufficient_privilege';
  END IF;
  e := guardian.event_of_changes(p_bytes);
  IF (e ->> 'environment', e ->> 'login') IS DISTINCT FROM (p_env, session_user::text)
     OR NOT (e ->> 'at')::bigint BETWEEN guardian.micros(now() - interval '10 minutes')
                                     AND guardian.micros(clock_timestamp() + interval '1 minute') THEN
    RAISE EXCEPTION 'a record of changes names another environment, login or time' USING ERRCODE = 'insufficient_privilege';
  END IF;
  named := jsonb_array_length(coalesce(e -> 'changes', '[]'));
  UPDATE guardian.recorded_changes r SET incarnation = c.incarnation, record = c.next
    FROM jsonb_array_elements(coalesce(e -> 'changes', '[]')) AS x(change)
    JOIN guardian.audit_trail a ON a.incarnation = '\x00000000000000000000000000000000' AND a.seq = (x.change ->> 'seq')::bigint
     AND a.occurred_at >= now() - interval '10 minutes' AND guardian.tells_of(x.change, a)
     AND e ->> 'user' IS NOT DISTINCT FROM a.user_id::text AND e ->> 'server' IS NOT DISTINCT FROM a.server_name
   WHERE r.seq = a.seq AND r.environment = p_env AND r.record IS NULL AND r.xact = pg_current_xact_id_if_assigned();
  GET DIAGNOSTICS covered = ROW_COUNT;
  IF covered <> named THEN
    RAISE EXCEPTION 'a record of changes covers rows that are not as it says, or not of this transaction'
      USING ERRCODE = 'insufficient_privilege';
  END IF;
  -- only a migration changes something that leaves no row, and only the schema's owner migrates
  IF covered = 0 AND NOT (e ->> 'action' = 'schema migrated' AND pg_has_role(session_user, 'guardian_owner', 'MEMBER')) THEN
    RAISE EXCEPTION 'a record of changes covers no row' USING ERRCODE = 'insufficient_privilege';
  END IF;
  new_leaf := sha256('\x00'::bytea || p_bytes);
  new_head := sha256('\x02'::bytea || c.head || new_leaf);
  INSERT INTO guardian.audit_trail (incarnation, seq, occurred_at, environment, kind, reason, user_id, server_name, actor, claimed_by,
                                    bytes, leaf, head)
  VALUES (c.incarnation, c.next, guardian.at_micros((e ->> 'at')::bigint), p_env, 'admin', e ->> 'action', (e ->> 'user')::uuid,
          e ->> 'server', (e #>> '{actor,user}') || '@' || (e #>> '{actor,host}')
            || coalesce(' (sudo: ' || (e #>> '{actor,sudo_user}') || ')', ''),
          e ->> 'claimed_by', p_bytes, new_leaf, new_head);
  UPDATE guardian.change_chain SET next = c.next + 1, head = new_head WHERE environment = p_env;
END $$;

-- What the proxy changes by itself (newcomers, approvals at first use) is covered by a record of its journal once that is
-- shipped. Only rows that the same login wrote, in these tables: a change that anybody else made by hand stays unhashed
-- whatever the proxy ships. Whoever holds the proxy's login can enrol by hand and ship a record that names the row; against
-- that stands the chain of the instance's journal, which such a record is not part of.
CREATE FUNCTION guardian.cover_changes(p_incarnation bytea, p_seq bigint) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  j guardian.audit_trail; covered bigint;
BEGIN
  SELECT * INTO j FROM guardian.audit_trail
   WHERE incarnation = p_incarnation AND seq = p_seq AND kind = 'admin' AND bytes IS NOT NULL AND recorded_by = session_user;
  IF NOT FOUND THEN RETURN 0; END IF;
  UPDATE guardian.recorded_changes r SET incarnation = p_incarnation, record = p_seq
    FROM jsonb_array_elements(coalesce(convert_from(j.bytes, 'UTF8')::jsonb #> '{event,changes}', '[]')) AS x(change)
    JOIN guardian.audit_trail a ON a.incarnation = '\x00000000000000000000000000000000' AND a.seq = (x.change ->> 'seq')::bigint
     AND guardian.tells_of(x.change, a)
     AND j.user_id IS NOT DISTINCT FROM a.user_id AND j.server_name IS NOT DISTINCT FROM a.server_name
     AND a.environment = j.environment AND a.recorded_by = session_user
     AND a.method IN ('users', 'user_identities', 'server_tools')
   WHERE r.seq = a.seq AND r.record IS NULL;
  GET DIAGNOSTICS covered = ROW_COUNT;
  RETURN covered;
END $$;

-- How many changes no record covers. Logins are bound and old partitions dropped with SQL, as the manual says: those rows say
-- so themselves, and are not counted.
CREATE FUNCTION guardian.unhashed_changes(p_env text) RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  SELECT count(*) FROM guardian.recorded_changes r
    LEFT JOIN guardian.audit_trail a ON a.incarnation = '\x00000000000000000000000000000000' AND a.seq = r.seq AND a.bytes IS NULL
   WHERE r.environment = p_env AND r.record IS NULL AND coalesce(a.method, '') NOT IN ('role_bindings', 'retention_log')
     AND (pg_has_role(session_user, 'guardian_owner', 'MEMBER')
          OR guardian.env_ok(p_env, guardian.environments_of(session_user)))
$$;

-- The chains that only append_change may add to, as hashes: who may add rows need not know the incarnations themselves.
CREATE FUNCTION guardian.change_chains() RETURNS bytea[]
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  SELECT coalesce(array_agg(sha256(incarnation)), '{}') FROM guardian.change_chain
$$;

-- ---------------------------------------------------------------- row security and privileges
ALTER POLICY proxy_appends ON guardian.audit_trail
  WITH CHECK (bytes IS NOT NULL AND guardian.env_ok(environment, (SELECT guardian.environments_of(current_user)))
              AND sha256(incarnation) <> ALL ((SELECT guardian.change_chains())::bytea[]));
ALTER TABLE guardian.change_chain ENABLE ROW LEVEL SECURITY;
ALTER TABLE guardian.recorded_changes ENABLE ROW LEVEL SECURITY;
CREATE POLICY changes_seen ON guardian.change_chain FOR SELECT TO guardian_admin, guardian_auditor
  USING (guardian.env_ok(environment, (SELECT guardian.environments_of(current_user))));
CREATE POLICY changes_seen ON guardian.recorded_changes FOR SELECT TO guardian_admin, guardian_auditor
  USING (guardian.env_ok(environment, (SELECT guardian.environments_of(current_user))));
GRANT SELECT ON guardian.change_chain, guardian.recorded_changes TO guardian_admin, guardian_auditor;

REVOKE ALL ON FUNCTION guardian.keep_recorded_changes(), guardian.unrecorded_changes(), guardian.require_author(text),
  guardian.own_row_text(guardian.audit_trail), guardian.own_changes(text), guardian.lock_change_chain(text),
  guardian.append_change(text, bytea), guardian.cover_changes(bytea, bigint), guardian.has_only(json, text[]),
  guardian.event_of_changes(bytea), guardian.tells_of(jsonb, guardian.audit_trail), guardian.unhashed_changes(text),
  guardian.change_chains() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION guardian.unhashed_changes(text) TO guardian_admin, guardian_auditor, guardian_proxy;
GRANT EXECUTE ON FUNCTION guardian.change_chains() TO guardian_proxy;
GRANT EXECUTE ON FUNCTION guardian.lock_change_chain(text), guardian.append_change(text, bytea) TO guardian_admin;
GRANT EXECUTE ON FUNCTION guardian.own_changes(text) TO guardian_admin, guardian_proxy;
GRANT EXECUTE ON FUNCTION guardian.unrecorded_changes(), guardian.cover_changes(bytea, bigint) TO guardian_proxy;
GRANT EXECUTE ON FUNCTION guardian.own_row_text(guardian.audit_trail) TO guardian_auditor;
RESET ROLE;
