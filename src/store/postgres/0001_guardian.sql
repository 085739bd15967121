-- Neural Guardian on PostgreSQL 15 and later (also Neon, Supabase). Applied in one transaction by `guardian db migrate`, by a
-- login with CREATEROLE and CREATE on the database; a superuser is not needed. Everything lives in schema "guardian".
--
-- Login roles are made by the operator, always with SQL: on Neon a role made in the console, CLI or API joins
-- neon_superuser, which bypasses row security, and the rules below would not bind it.
--   CREATE ROLE guardian_proxy_prod LOGIN PASSWORD '...' IN ROLE guardian_proxy;
--   SELECT guardian.bind_role('guardian_proxy_prod', 'production');
-- At start the proxy runs  SELECT * FROM guardian.self_check('production')  and refuses to serve on any row.

DO $$
BEGIN
  IF current_setting('server_version_num')::int < 150000 THEN
    RAISE EXCEPTION 'PostgreSQL 15 or later is needed, this is %', current_setting('server_version');
  END IF;
END $$;

-- ---------------------------------------------------------------- roles (groups, NOLOGIN)
-- Roles belong to the whole cluster: another database may have made them before, or be making them at this moment.
DO $$
DECLARE r text;
BEGIN
  FOREACH r IN ARRAY ARRAY['guardian_owner',    -- owns the objects; nobody logs in as it
                           'guardian_admin',    -- edits registry, grants, keys, users, pins; cannot touch audit
                           'guardian_proxy',    -- reads grants, appends audit
                           'guardian_auditor',  -- reads audit
                           'guardian_user']     -- end user behind a Data API: own rows only
  LOOP
    BEGIN
      IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = r) THEN
        EXECUTE format('CREATE ROLE %I NOLOGIN', r);
      END IF;
    EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
    END;
  END LOOP;
  -- PostgreSQL 16 and later: the creator's implicit membership does not allow SET ROLE; this one does. Where another login
  -- made the roles, it or a superuser grants guardian_owner beforehand.
  IF NOT pg_has_role(current_user, 'guardian_owner', 'USAGE') THEN
    BEGIN
      EXECUTE format('GRANT guardian_owner TO %I', current_user);
    EXCEPTION WHEN unique_violation THEN NULL;
    END;
  END IF;
END $$;

ALTER SCHEMA guardian OWNER TO guardian_owner;
ALTER TABLE guardian.migrations OWNER TO guardian_owner;
SET LOCAL ROLE guardian_owner;
REVOKE ALL ON SCHEMA guardian FROM PUBLIC;
GRANT USAGE ON SCHEMA guardian TO guardian_admin, guardian_proxy, guardian_auditor, guardian_user;
ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;   -- of guardian_owner; per schema it has no effect

-- ---------------------------------------------------------------- times
-- The program speaks microseconds since 1970 UTC. An infinite time becomes the end of its numbers.
CREATE FUNCTION guardian.micros(p timestamptz) RETURNS bigint LANGUAGE sql STABLE PARALLEL SAFE AS $$
  SELECT CASE WHEN isfinite(p) THEN (extract(epoch FROM p) * 1000000)::bigint
              WHEN p = 'infinity' THEN 9223372036854775807
              WHEN p = '-infinity' THEN -9223372036854775807 END
$$;
-- seconds and the rest apart: one product would lose microseconds past the year 2255
CREATE FUNCTION guardian.at_micros(p bigint) RETURNS timestamptz LANGUAGE sql STABLE PARALLEL SAFE AS $$
  SELECT timestamptz '1970-01-01 00:00:00+00' + (p / 1000000) * interval '1 second' + (p % 1000000) * interval '1 microsecond'
$$;

-- ---------------------------------------------------------------- environments bound to roles
-- Which login role may act in which environment ('*' = all). The boundary is the database login, not a setting that a
-- client could change.
CREATE TABLE guardian.role_bindings (
  role_name   name NOT NULL,
  environment text NOT NULL CHECK (environment <> ''),
  PRIMARY KEY (role_name, environment)
);

CREATE FUNCTION guardian.environments_of(p_role name) RETURNS text[]
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS
$$ SELECT coalesce(array_agg(environment ORDER BY environment), '{}') FROM guardian.role_bindings WHERE role_name = p_role $$;
COMMENT ON FUNCTION guardian.environments_of IS
  'Use inside policies as (SELECT guardian.environments_of(current_user)): an InitPlan, once per query.';

CREATE FUNCTION guardian.env_ok(p_env text, p_envs text[]) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$ SELECT p_env = ANY (p_envs) OR '*' = ANY (p_envs) $$;

-- For the functions below that write on behalf of a login: the login itself must be bound, whatever role it has set.
CREATE FUNCTION guardian.require_environment(p_env text) RETURNS void
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF NOT guardian.env_ok(p_env, guardian.environments_of(session_user)) THEN
    RAISE EXCEPTION 'role % is not bound to environment %', session_user, p_env USING ERRCODE = 'insufficient_privilege';
  END IF;
END $$;

-- The end user of a Data API request: JWT claims as PostgREST and Supabase set them, else a setting made by a trusted
-- backend. Never grant guardian_user to a login that can run arbitrary SQL.
CREATE FUNCTION guardian.current_user_id() RETURNS uuid LANGUAGE sql STABLE AS $$
  SELECT nullif(coalesce(nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub',
                         current_setting('guardian.user_id', true)), '')::uuid
$$;

-- ---------------------------------------------------------------- people
-- One row a user and environment. Ids mirror the identity provider's where they are UUIDs.
CREATE TABLE guardian.users (
  environment  text NOT NULL DEFAULT 'default',
  id           uuid NOT NULL DEFAULT gen_random_uuid(),
  kind         text NOT NULL DEFAULT 'user' CHECK (kind IN ('user', 'service')),
  email        text,                       -- for display; never a basis for a decision
  display_name text,
  roles        text[] NOT NULL DEFAULT '{}',
  status       text NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'disabled')),
  created_at   timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (environment, id)
);

-- (issuer, subject) names a person; a bare subject never does. Two issuers that hold "the same" user id get two rows, and
-- both point at one user only if someone linked them on purpose.
CREATE TABLE guardian.user_identities (
  environment text NOT NULL DEFAULT 'default',
  issuer      text NOT NULL,
  subject     text NOT NULL,
  user_id     uuid NOT NULL,
  linked_at   timestamptz NOT NULL DEFAULT now(),
  linked_by   name NOT NULL DEFAULT session_user,
  PRIMARY KEY (environment, issuer, subject),
  FOREIGN KEY (environment, user_id) REFERENCES guardian.users (environment, id) ON DELETE CASCADE
);
CREATE INDEX user_identities_user ON guardian.user_identities (environment, user_id);

-- ---------------------------------------------------------------- servers and their tools
CREATE TABLE guardian.mcp_registry (
  environment text NOT NULL DEFAULT 'default',
  id          text NOT NULL,               -- what mcp_authorizations.server_name refers to
  name        text NOT NULL,
  url         text,
  type        text NOT NULL DEFAULT 'server' CHECK (type IN ('server', 'tool', 'client')),
  enabled     boolean NOT NULL DEFAULT true,
  -- tool -> required scopes; a tool that is absent requires the scope of its own name
  tool_scopes jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(tool_scopes) = 'object'),
  created_at  timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (environment, id)
);

-- What each server offers and what somebody approved. Rows change only when the offer or the pin does.
CREATE TABLE guardian.server_tools (
  environment        text NOT NULL DEFAULT 'default',
  server             text NOT NULL,
  tool               text NOT NULL,
  offered_definition text,
  offered_digest     bytea CHECK (octet_length(offered_digest) = 32),
  offered_since      timestamptz NOT NULL DEFAULT now(),
  pinned_definition  text,
  pinned_digest      bytea CHECK (octet_length(pinned_digest) = 32),
  pinned_at          timestamptz,
  pinned_by          text,
  PRIMARY KEY (environment, server, tool),
  CHECK ((offered_definition IS NULL) = (offered_digest IS NULL)),
  CHECK ((pinned_definition IS NULL) = (pinned_digest IS NULL))
);

-- ---------------------------------------------------------------- grants, keys, revocations
CREATE TABLE guardian.mcp_authorizations (
  id          uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  environment text NOT NULL DEFAULT 'default',
  user_id     uuid NOT NULL,
  server_name text NOT NULL,
  client_id   text,                        -- NULL: any OAuth client of this user
  status      text NOT NULL DEFAULT 'idle' CHECK (status IN ('idle', 'verified', 'revoked')),
  verified    boolean GENERATED ALWAYS AS (status = 'verified') STORED,
  scopes      jsonb NOT NULL DEFAULT '[]',           -- ["read_file", ...]
  expires_at  timestamptz,
  revoked_at  timestamptz,
  row_version bigint NOT NULL DEFAULT 1,
  created_at  timestamptz NOT NULL DEFAULT now(),
  updated_at  timestamptz NOT NULL DEFAULT now(),
  CONSTRAINT scopes_are_strings CHECK (jsonb_typeof(scopes) = 'array'
    AND NOT jsonb_path_exists(scopes, 'strict $[*] ? (@.type() != "string")')),
  CONSTRAINT one_grant UNIQUE NULLS NOT DISTINCT (environment, user_id, server_name, client_id),
  FOREIGN KEY (environment, user_id) REFERENCES guardian.users (environment, id) ON DELETE CASCADE
);

CREATE TABLE guardian.api_keys (
  key_id         text PRIMARY KEY,         -- public part of the key, to find the row
  environment    text NOT NULL DEFAULT 'default',
  user_id        uuid NOT NULL,
  name           text NOT NULL DEFAULT '',
  key_hash       bytea NOT NULL CHECK (octet_length(key_hash) = 32),
  pepper_version integer NOT NULL DEFAULT 1,
  scopes         jsonb NOT NULL DEFAULT '[]' CHECK (jsonb_typeof(scopes) = 'array'),
  created_at     timestamptz NOT NULL DEFAULT now(),
  expires_at     timestamptz,
  revoked_at     timestamptz,
  FOREIGN KEY (environment, user_id) REFERENCES guardian.users (environment, id) ON DELETE CASCADE
);
CREATE INDEX api_keys_user ON guardian.api_keys (environment, user_id);

-- Kill switch for what a JWT verifier cannot see: logout, ban, stolen token. Tokens of the named thing issued before
-- "issued_before" are refused until "expires_at" (past the longest token life).
CREATE TABLE guardian.revocations (
  environment   text NOT NULL DEFAULT 'default',
  issuer        text NOT NULL,
  kind          text NOT NULL CHECK (kind IN ('subject', 'session', 'client', 'jti')),
  value         text NOT NULL,
  issued_before timestamptz NOT NULL DEFAULT now(),
  expires_at    timestamptz NOT NULL DEFAULT now() + interval '24 hours',
  reason        text,
  PRIMARY KEY (environment, issuer, kind, value)
);

-- ---------------------------------------------------------------- the audit trail
-- One row a record of the journal, keyed by (incarnation, seq); occurred_at is in the key because rows are kept in monthly
-- partitions, and it is derived from the bytes like every other column. Rows without bytes are the database's own
-- (incarnation of zeros): who changed which grant, key, user, identity or pin.
CREATE TABLE guardian.audit_trail (
  incarnation  bytea NOT NULL CHECK (octet_length(incarnation) = 16),
  seq          bigint NOT NULL CHECK (seq >= 0),
  occurred_at  timestamptz NOT NULL,                             -- the writer's clock
  recorded_at  timestamptz NOT NULL DEFAULT clock_timestamp(),   -- the database's clock
  recorded_by  name NOT NULL DEFAULT session_user,
  environment  text NOT NULL,
  kind         text NOT NULL CHECK (kind IN ('start', 'decision', 'outcome', 'policy', 'admin', 'suppressed', 'stop', 'opaque')),
  request_id   uuid,                                             -- joins decision and outcome
  decision     text CHECK (decision IN ('allow', 'deny')),
  reason       text,                                             -- stable machine-readable code
  user_id      uuid,
  issuer       text,
  subject      text,
  auth_method  text,
  client_id    text,
  key_id       text,
  server_name  text,
  method       text,                                             -- tools/call, tools/list, ...
  tool_name    text,
  policies     jsonb,                                            -- Cedar policies that decided
  policy_set   bytea,
  grant_seq    bigint,                                           -- change_log position decided upon
  grant_age_ms bigint,                                           -- age of that knowledge
  source_ip    text,
  ending       text,
  status       bigint,
  latency_us   bigint,
  change       jsonb,                                            -- of the database's own rows: {"old": ..., "new": ...}
  bytes        bytea,
  leaf         bytea,
  head         bytea,
  PRIMARY KEY (incarnation, seq, occurred_at),
  CHECK ((bytes IS NULL) = (incarnation = '\x00000000000000000000000000000000'))
) PARTITION BY RANGE (occurred_at);

CREATE INDEX audit_time    ON guardian.audit_trail (environment, occurred_at);
CREATE INDEX audit_rare    ON guardian.audit_trail (environment, kind, occurred_at) WHERE kind NOT IN ('decision', 'outcome');
CREATE INDEX audit_user    ON guardian.audit_trail (environment, user_id, occurred_at) WHERE kind = 'decision';
CREATE INDEX audit_tool    ON guardian.audit_trail (environment, server_name, tool_name, occurred_at) WHERE kind = 'decision';
CREATE INDEX audit_refused ON guardian.audit_trail (environment, occurred_at) WHERE decision = 'deny';
CREATE INDEX audit_request ON guardian.audit_trail (request_id) WHERE request_id IS NOT NULL;

-- The owner is stopped too: only dropping a whole expired partition removes rows.
CREATE FUNCTION guardian.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION '% is append-only: % refused', TG_TABLE_NAME, TG_OP USING ERRCODE = 'insufficient_privilege';
END $$;
CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE ON guardian.audit_trail
  FOR EACH ROW EXECUTE FUNCTION guardian.refuse_change();
CREATE TRIGGER audit_no_truncate BEFORE TRUNCATE ON guardian.audit_trail
  FOR EACH STATEMENT EXECUTE FUNCTION guardian.refuse_change();

CREATE TABLE guardian.retention_log (
  at timestamptz NOT NULL DEFAULT clock_timestamp(),
  by name NOT NULL DEFAULT session_user,
  partition_name text NOT NULL,
  rows_dropped bigint NOT NULL
);

-- Monthly partitions, made ahead. The default partition keeps rows of a clock gone wrong and is otherwise empty; a month
-- whose rows already sit there is skipped and reported.
CREATE FUNCTION guardian.ensure_partitions(p_months_ahead integer DEFAULT 2)
RETURNS TABLE (partition_name text, result text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  m timestamptz; part text; i integer;
  base timestamp := date_trunc('month', now() AT TIME ZONE 'UTC');
BEGIN
  LOCK TABLE guardian.retention_log IN EXCLUSIVE MODE;   -- one maker at a time
  FOR i IN -1 .. greatest(0, least(p_months_ahead, 24)) LOOP
    m := (base + make_interval(months => greatest(i, 0))) AT TIME ZONE 'UTC';
    part := 'audit_trail_' || CASE WHEN i = -1 THEN 'default' ELSE to_char(m AT TIME ZONE 'UTC', 'YYYYMM') END;
    CONTINUE WHEN to_regclass('guardian.' || part) IS NOT NULL;
    BEGIN
      EXECUTE format('CREATE TABLE guardian.%I PARTITION OF guardian.audit_trail %s', part,
        CASE WHEN i = -1 THEN 'DEFAULT' ELSE format('FOR VALUES FROM (%L) TO (%L)',
          m, (m AT TIME ZONE 'UTC' + interval '1 month') AT TIME ZONE 'UTC') END);
      EXECUTE format('ALTER TABLE guardian.%I ENABLE ROW LEVEL SECURITY', part);  -- no policy: shut
      EXECUTE format('CREATE TRIGGER no_truncate BEFORE TRUNCATE ON guardian.%I
                      FOR EACH STATEMENT EXECUTE FUNCTION guardian.refuse_change()', part);
      partition_name := part; result := 'created'; RETURN NEXT;
    EXCEPTION WHEN check_violation THEN
      partition_name := part; result := 'skipped: rows already in the default partition'; RETURN NEXT;
    END;
  END LOOP;
END $$;

-- Retention: detaches and drops whole partitions whose newest possible row is older than p_keep.
CREATE FUNCTION guardian.drop_expired_partitions(p_keep interval) RETURNS SETOF text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE p record; n bigint;
BEGIN
  IF p_keep < interval '30 days' THEN RAISE EXCEPTION 'refusing to keep less than 30 days'; END IF;
  LOCK TABLE guardian.retention_log IN EXCLUSIVE MODE;
  FOR p IN SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
           WHERE i.inhparent = 'guardian.audit_trail'::regclass AND c.relname ~ '^audit_trail_\d{6}$'
             AND right(c.relname, 6) < to_char((now() - p_keep) AT TIME ZONE 'UTC', 'YYYYMM')
  LOOP
    EXECUTE format('SELECT count(*) FROM guardian.%I', p.relname) INTO n;
    EXECUTE format('ALTER TABLE guardian.audit_trail DETACH PARTITION guardian.%I', p.relname);
    EXECUTE format('DROP TABLE guardian.%I', p.relname);
    INSERT INTO guardian.retention_log (partition_name, rows_dropped) VALUES (p.relname, n);
    RETURN NEXT p.relname;
  END LOOP;
END $$;

-- Who changed what, kept where nobody can edit it. Secrets and long texts are cut out.
CREATE SEQUENCE guardian.own_seq AS bigint MINVALUE 0;
CREATE FUNCTION guardian.own_record() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  cut text[] := ARRAY['key_hash', 'offered_definition', 'pinned_definition'];
  o jsonb; n jsonb; r jsonb;
BEGIN
  IF TG_OP = 'UPDATE' AND NEW IS NOT DISTINCT FROM OLD THEN RETURN NULL; END IF;
  IF TG_OP <> 'INSERT' THEN o := to_jsonb(OLD) - cut; END IF;
  IF TG_OP <> 'DELETE' THEN n := to_jsonb(NEW) - cut; END IF;
  r := coalesce(n, o);
  INSERT INTO guardian.audit_trail (incarnation, seq, occurred_at, environment, kind, reason, user_id, server_name, method, change)
  VALUES ('\x00000000000000000000000000000000', nextval('guardian.own_seq'), clock_timestamp(), r ->> 'environment', 'admin',
          lower(TG_OP), (r ->> CASE TG_TABLE_NAME WHEN 'users' THEN 'id' ELSE 'user_id' END)::uuid,
          coalesce(r ->> 'server_name', r ->> 'server'), TG_TABLE_NAME, jsonb_strip_nulls(jsonb_build_object('old', o, 'new', n)));
  RETURN NULL;
END $$;

DO $$
DECLARE t text;
BEGIN
  FOREACH t IN ARRAY ARRAY['mcp_authorizations', 'api_keys', 'users', 'user_identities'] LOOP
    EXECUTE format('CREATE TRIGGER own_record AFTER INSERT OR UPDATE OR DELETE ON guardian.%I
                    FOR EACH ROW EXECUTE FUNCTION guardian.own_record()', t);
  END LOOP;
END $$;
CREATE TRIGGER own_record_i AFTER INSERT ON guardian.server_tools FOR EACH ROW
  WHEN (NEW.pinned_digest IS NOT NULL) EXECUTE FUNCTION guardian.own_record();
CREATE TRIGGER own_record_u AFTER UPDATE ON guardian.server_tools FOR EACH ROW
  WHEN (NEW.pinned_digest IS DISTINCT FROM OLD.pinned_digest) EXECUTE FUNCTION guardian.own_record();

-- ---------------------------------------------------------------- change feed
-- What readers may rely on: whoever sees position N sees every committed position below N.
-- A plain bigserial does not give that (a late commit shows up below the reader's watermark), so the position is taken at
-- commit: a deferred constraint trigger locks feed_lock, then takes nextval. The lock is held until the commit is visible,
-- never while a transaction is idle, and it works at every isolation level (a counter row would raise 40001 under
-- REPEATABLE READ). A table lock and not an advisory one: nobody but the owner can take it.
CREATE SEQUENCE guardian.change_seq AS bigint CACHE 1;   -- CACHE above 1 would break the order
CREATE TABLE guardian.feed_lock ();

CREATE TABLE guardian.change_log (
  seq         bigint PRIMARY KEY,
  tag         uuid NOT NULL DEFAULT gen_random_uuid(),  -- tells a restored or failed-over history apart
  at          timestamptz NOT NULL DEFAULT clock_timestamp(),
  actor       name NOT NULL DEFAULT session_user,
  environment text NOT NULL,
  relation    text NOT NULL,               -- grant, key, user, identity, registry, revocation, catalogue
  op          text NOT NULL CHECK (op IN ('I', 'U', 'D', 'T')),   -- T: reload this relation
  user_ref    text,
  server_name text,
  row_ref     text
);
CREATE INDEX change_log_env ON guardian.change_log (environment, seq);

-- Arguments: relation, environment column (or '=literal'), user column, server column, key column; '' where there is none.
-- Columns are read by name out of the row, so it fits foreign tables too.
CREATE FUNCTION guardian.emit_change() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  k record; o jsonb; n jsonb; one text := left(TG_OP, 1);
BEGIN
  IF TG_OP = 'UPDATE' AND NEW IS NOT DISTINCT FROM OLD THEN RETURN NULL; END IF;
  LOCK TABLE guardian.feed_lock IN EXCLUSIVE MODE;
  IF TG_OP = 'TRUNCATE' THEN
    FOR k IN SELECT substr(TG_ARGV[1], 2) AS e WHERE TG_ARGV[1] LIKE '=%'
       UNION SELECT environment FROM guardian.change_log WHERE TG_ARGV[1] NOT LIKE '=%' LOOP
      INSERT INTO guardian.change_log (seq, environment, relation, op)
        VALUES (nextval('guardian.change_seq'), k.e, TG_ARGV[0], 'T');
      PERFORM pg_notify('guardian_changes', k.e);
    END LOOP;
    RETURN NULL;
  END IF;
  IF TG_OP IN ('UPDATE', 'DELETE') THEN o := to_jsonb(OLD); END IF;
  IF TG_OP IN ('UPDATE', 'INSERT') THEN n := to_jsonb(NEW); END IF;
  -- an update that moves a row to another user, server or environment is told to both
  FOR k IN SELECT DISTINCT
      CASE WHEN TG_ARGV[1] LIKE '=%' THEN substr(TG_ARGV[1], 2) ELSE r ->> TG_ARGV[1] END AS e,
      r ->> nullif(TG_ARGV[2], '') AS u, r ->> nullif(TG_ARGV[3], '') AS s, r ->> nullif(TG_ARGV[4], '') AS i
    FROM (VALUES (o), (n)) AS v(r) WHERE r IS NOT NULL
  LOOP
    INSERT INTO guardian.change_log (seq, environment, relation, op, user_ref, server_name, row_ref)
      VALUES (nextval('guardian.change_seq'), coalesce(k.e, 'default'), TG_ARGV[0], one, k.u, k.s, k.i);
    -- only the environment: equal notifications of one transaction collapse into one
    PERFORM pg_notify('guardian_changes', coalesce(k.e, 'default'));
  END LOOP;
  RETURN NULL;
END $$;

-- Where rows arrive by logical replication, add  ALTER TABLE ... ENABLE ALWAYS TRIGGER guardian_feed.  PREPARE TRANSACTION
-- is refused by PostgreSQL for a transaction that notifies.
CREATE FUNCTION guardian.attach_change_feed(p_table regclass, p_relation text, p_env text, p_user text, p_server text, p_key text)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE format('CREATE CONSTRAINT TRIGGER guardian_feed AFTER INSERT OR UPDATE OR DELETE ON %s
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION guardian.emit_change(%L,%L,%L,%L,%L)',
    p_table, p_relation, p_env, p_user, p_server, p_key);
  EXECUTE format('CREATE TRIGGER guardian_feed_truncate AFTER TRUNCATE ON %s
    FOR EACH STATEMENT EXECUTE FUNCTION guardian.emit_change(%L,%L,%L,%L,%L)',
    p_table, p_relation, p_env, p_user, p_server, p_key);
END $$;

SELECT guardian.attach_change_feed('guardian.mcp_authorizations', 'grant',      'environment', 'user_id', 'server_name', 'id');
SELECT guardian.attach_change_feed('guardian.api_keys',           'key',        'environment', 'user_id', '', 'key_id');
SELECT guardian.attach_change_feed('guardian.users',              'user',       'environment', 'id',      '', 'id');
SELECT guardian.attach_change_feed('guardian.user_identities',    'identity',   'environment', 'user_id', '', 'subject');
SELECT guardian.attach_change_feed('guardian.mcp_registry',       'registry',   'environment', '', 'id', 'id');
SELECT guardian.attach_change_feed('guardian.revocations',        'revocation', 'environment', '', '', 'value');
SELECT guardian.attach_change_feed('guardian.server_tools',       'catalogue',  'environment', '', 'server', 'tool');

CREATE FUNCTION guardian.prune_change_log(p_keep interval DEFAULT '7 days') RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  WITH newest AS (SELECT environment, max(seq) AS seq FROM guardian.change_log GROUP BY 1),
       gone AS (DELETE FROM guardian.change_log c USING newest n
                WHERE c.environment = n.environment AND c.seq < n.seq AND c.at < now() - p_keep RETURNING 1)
  SELECT count(*) FROM gone
$$;

CREATE FUNCTION guardian.touch_grant() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  NEW.updated_at := now();
  NEW.row_version := CASE WHEN TG_OP = 'UPDATE' THEN OLD.row_version + 1 ELSE 1 END;
  NEW.revoked_at := CASE WHEN NEW.status <> 'revoked' THEN NULL
                         WHEN TG_OP = 'UPDATE' AND OLD.status = 'revoked' THEN OLD.revoked_at ELSE now() END;
  RETURN NEW;
END $$;
CREATE TRIGGER touch BEFORE INSERT OR UPDATE ON guardian.mcp_authorizations
  FOR EACH ROW EXECUTE FUNCTION guardian.touch_grant();

-- ---------------------------------------------------------------- the contract the proxy reads
-- An existing table of grants is mapped by replacing this view. user_ref and grant_ref keep the type of their column: a cast
-- to text here would cost the index, since row security lets only leakproof conditions through first.
CREATE VIEW guardian.grants WITH (security_invoker = true) AS
  SELECT environment, user_id AS user_ref, server_name, client_id, status, scopes, expires_at, id AS grant_ref, row_version
  FROM guardian.mcp_authorizations;

-- ---------------------------------------------------------------- the little that the proxy may write
-- Just-in-time enrolment: the user that (issuer, subject) names, made if there is none.
CREATE FUNCTION guardian.enrol(p_env text, p_issuer text, p_subject text, p_email text, p_roles text[], p_kind text) RETURNS uuid
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE found_id uuid;
BEGIN
  PERFORM guardian.require_environment(p_env);
  -- two calls of the same newcomer at once: the second waits here, then finds
  PERFORM pg_advisory_xact_lock(hashtextextended(concat_ws(E'\n', p_env, p_issuer, p_subject), 0));
  SELECT user_id INTO found_id FROM guardian.user_identities
   WHERE environment = p_env AND issuer = p_issuer AND subject = p_subject;
  IF found_id IS NULL THEN
    INSERT INTO guardian.users (environment, kind, email, roles) VALUES (p_env, p_kind, p_email, p_roles) RETURNING id INTO found_id;
    INSERT INTO guardian.user_identities (environment, issuer, subject, user_id) VALUES (p_env, p_issuer, p_subject, found_id);
  END IF;
  RETURN found_id;
END $$;

-- What a server offers now (NULL: no longer). Pins only what was never pinned, and only if asked to.
CREATE FUNCTION guardian.note_offer(p_env text, p_server text, p_tool text, p_digest bytea, p_definition text, p_pin boolean)
RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM guardian.require_environment(p_env);
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

-- An administrator of some environments can bind logins to these and no others.
CREATE FUNCTION guardian.bind_role(p_role name, p_env text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF NOT pg_has_role(session_user, 'guardian_owner', 'MEMBER') THEN
    PERFORM guardian.require_environment(p_env);
  END IF;
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = p_role) THEN
    RAISE EXCEPTION 'role `%`', p_role USING ERRCODE = 'no_data_found';
  END IF;
  INSERT INTO guardian.role_bindings VALUES (p_role, p_env) ON CONFLICT DO NOTHING;
END $$;

-- Run by the proxy at start as itself; any row is a reason not to serve.
CREATE FUNCTION guardian.self_check(p_env text) RETURNS TABLE (problem text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT 'role `' || current_user || '` is a superuser' WHERE (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)
  UNION ALL SELECT 'role `' || current_user || '` bypasses row security (BYPASSRLS of `' || rolname || '`)' FROM pg_roles
    WHERE rolbypassrls AND NOT rolsuper AND pg_has_role(current_user, oid, 'MEMBER')
  UNION ALL SELECT 'role `' || current_user || '` is a member of ' || g FROM unnest(ARRAY['guardian_owner', 'guardian_admin']) g
    WHERE pg_has_role(current_user, g, 'MEMBER') AND NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)
  UNION ALL SELECT 'role `' || current_user || '` is not a member of guardian_proxy'
    WHERE NOT pg_has_role(current_user, 'guardian_proxy', 'MEMBER')
  UNION ALL SELECT 'role `' || current_user || '` is bound to no environment' WHERE guardian.environments_of(current_user) = '{}'
  UNION ALL SELECT 'role `' || current_user || '` is not bound to environment `' || p_env || '`'
    WHERE guardian.environments_of(current_user) <> '{}' AND NOT guardian.env_ok(p_env, guardian.environments_of(current_user))
  UNION ALL SELECT 'role `' || current_user || '` may ' || p || ' on audit_trail' FROM unnest(ARRAY['UPDATE', 'DELETE', 'TRUNCATE']) p
    WHERE has_table_privilege('guardian.audit_trail', p) AND NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)
  UNION ALL SELECT 'row security is off on ' || c.relname FROM pg_class c
    WHERE c.relnamespace = 'guardian'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relrowsecurity
  UNION ALL SELECT 'change feed is missing or disabled on ' || t
    FROM unnest(ARRAY['mcp_authorizations', 'api_keys', 'users', 'user_identities', 'mcp_registry', 'revocations', 'server_tools']) t
    WHERE NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = to_regclass('guardian.' || t)
                      AND tgname = 'guardian_feed' AND tgenabled IN ('O', 'A') AND tginitdeferred)
  UNION ALL SELECT 'append-only trigger is missing or disabled'
    WHERE NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'guardian.audit_trail'::regclass
                      AND tgname = 'audit_append_only' AND tgenabled IN ('O', 'A'))
  UNION ALL SELECT 'no audit partition for ' || to_char(d, 'YYYY-MM')
    FROM unnest(ARRAY[now() AT TIME ZONE 'UTC', now() AT TIME ZONE 'UTC' + interval '7 days']) d
    WHERE to_regclass('guardian.audit_trail_' || to_char(d, 'YYYYMM')) IS NULL
  UNION ALL SELECT 'this is a standby: it cannot confirm grants' WHERE pg_is_in_recovery()
$$;

-- ---------------------------------------------------------------- row security: on for every table
DO $$
DECLARE
  t text;
  bound CONSTANT text := 'guardian.env_ok(environment, (SELECT guardian.environments_of(current_user)))';
BEGIN
  FOR t IN SELECT relname FROM pg_class WHERE relnamespace = 'guardian'::regnamespace AND relkind IN ('r', 'p') LOOP
    EXECUTE format('ALTER TABLE guardian.%I ENABLE ROW LEVEL SECURITY', t);
  END LOOP;
  -- proxy and admin, within the environments their login is bound to
  FOREACH t IN ARRAY ARRAY['users', 'user_identities', 'mcp_registry', 'mcp_authorizations', 'api_keys', 'revocations', 'server_tools'] LOOP
    EXECUTE format('CREATE POLICY proxy_reads ON guardian.%I FOR SELECT TO guardian_proxy USING (%s)', t, bound);
    EXECUTE format('CREATE POLICY admin_edits ON guardian.%I FOR ALL TO guardian_admin USING (%s) WITH CHECK (%s)', t, bound, bound);
  END LOOP;
  -- rows without bytes are the database's own
  EXECUTE format('CREATE POLICY proxy_appends ON guardian.audit_trail FOR INSERT TO guardian_proxy
    WITH CHECK (bytes IS NOT NULL AND %s)', bound);
  EXECUTE format('CREATE POLICY auditor_reads ON guardian.audit_trail FOR SELECT TO guardian_auditor USING (%s)', bound);
  EXECUTE format('CREATE POLICY auditor_reads ON guardian.users FOR SELECT TO guardian_auditor USING (%s)', bound);
  EXECUTE format('CREATE POLICY feed_reads ON guardian.change_log FOR SELECT TO guardian_proxy, guardian_auditor, guardian_admin
    USING (%s)', bound);
  FOREACH t IN ARRAY ARRAY['audit_trail', 'mcp_authorizations', 'api_keys'] LOOP
    EXECUTE format('CREATE POLICY own_rows ON guardian.%I FOR SELECT TO guardian_user
      USING (user_id = (SELECT guardian.current_user_id()))', t);
  END LOOP;
END $$;
CREATE POLICY own_row ON guardian.users FOR SELECT TO guardian_user USING (id = (SELECT guardian.current_user_id()));
CREATE POLICY bindings_seen ON guardian.role_bindings FOR SELECT TO guardian_admin, guardian_auditor USING (true);
CREATE POLICY retention_seen ON guardian.retention_log FOR SELECT TO guardian_admin, guardian_auditor USING (true);
CREATE POLICY version_seen ON guardian.migrations FOR SELECT TO guardian_admin, guardian_proxy, guardian_auditor USING (true);

-- ---------------------------------------------------------------- privileges
GRANT SELECT ON guardian.migrations TO guardian_admin, guardian_proxy, guardian_auditor;
GRANT SELECT ON guardian.users, guardian.user_identities, guardian.mcp_registry, guardian.mcp_authorizations, guardian.api_keys,
  guardian.revocations, guardian.server_tools, guardian.change_log, guardian.grants TO guardian_proxy;
-- append: neither recorded_at nor recorded_by nor change can be given, and nothing can be read back
GRANT INSERT (incarnation, seq, occurred_at, environment, kind, request_id, decision, reason, user_id, issuer, subject, auth_method,
  client_id, key_id, server_name, method, tool_name, policies, policy_set, grant_seq, grant_age_ms, source_ip, ending, status,
  latency_us, bytes, leaf, head) ON guardian.audit_trail TO guardian_proxy;

GRANT SELECT ON guardian.audit_trail, guardian.change_log, guardian.role_bindings, guardian.retention_log TO guardian_auditor;
GRANT SELECT (environment, id, kind, email, display_name) ON guardian.users TO guardian_auditor;

GRANT SELECT, INSERT, UPDATE, DELETE ON guardian.users, guardian.user_identities, guardian.mcp_registry, guardian.revocations,
  guardian.mcp_authorizations TO guardian_admin;
GRANT INSERT, UPDATE, DELETE ON guardian.api_keys TO guardian_admin;
GRANT SELECT (environment, user_id, name, key_id, pepper_version, scopes, created_at, expires_at, revoked_at) ON guardian.api_keys
  TO guardian_admin, guardian_user;
GRANT SELECT, DELETE, UPDATE (pinned_definition, pinned_digest, pinned_at, pinned_by) ON guardian.server_tools TO guardian_admin;
GRANT SELECT ON guardian.change_log, guardian.role_bindings, guardian.retention_log, guardian.grants TO guardian_admin;

GRANT SELECT ON guardian.audit_trail, guardian.users, guardian.mcp_authorizations TO guardian_user;

GRANT EXECUTE ON FUNCTION guardian.environments_of(name), guardian.env_ok(text, text[]), guardian.micros(timestamptz),
  guardian.at_micros(bigint) TO guardian_proxy, guardian_auditor, guardian_admin, guardian_user;
GRANT EXECUTE ON FUNCTION guardian.current_user_id() TO guardian_user;
GRANT EXECUTE ON FUNCTION guardian.self_check(text), guardian.enrol(text, text, text, text, text[], text) TO guardian_proxy;
GRANT EXECUTE ON FUNCTION guardian.ensure_partitions(integer), guardian.note_offer(text, text, text, bytea, text, boolean)
  TO guardian_proxy, guardian_admin;
GRANT EXECUTE ON FUNCTION guardian.drop_expired_partitions(interval), guardian.prune_change_log(interval),
  guardian.bind_role(name, text) TO guardian_admin;

SELECT guardian.ensure_partitions(2);
RESET ROLE;
