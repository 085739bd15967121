-- Whether the change feed tells of everything that the proxy holds in memory. Read with every confirmation, so that a mapped
-- table without its trigger, or a view that was pointed elsewhere, is noticed within `grants.max_staleness`.
SET LOCAL ROLE guardian_owner;

-- One row.
--   gaps         what the feed would not tell of; NULL where it tells everything
--   fingerprint  changes when a trigger, a view or a table behind `guardian.grants` is made, replaced, enabled or disabled:
--                what changed meanwhile may be missing in the feed, so the proxy reads everything anew
-- `guardian.grants` may read any tables through any views: they are found by what their rules depend on. By name and not
-- by regclass literal, which would keep the view from being dropped and made anew.
CREATE VIEW guardian.feed_state AS
WITH RECURSIVE wanted (name) AS (
  SELECT unnest(ARRAY['grants', 'api_keys', 'users', 'user_identities', 'mcp_registry', 'revocations', 'server_tools'])
), reads (oid) AS (
    SELECT to_regclass('guardian.' || name)::oid FROM wanted
  UNION
    SELECT next.oid FROM reads r CROSS JOIN LATERAL (
        -- what a view selects from; rules of tables that do something else are no reading
        SELECT d.refobjid FROM pg_catalog.pg_rewrite w
          JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_rewrite'::regclass AND d.objid = w.oid
            AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid <> r.oid
         WHERE w.ev_class = r.oid AND w.ev_type = '1'
      UNION ALL
        -- rows of partitions and of inheriting tables are read with their parent's
        SELECT i.inhrelid FROM pg_catalog.pg_inherits i WHERE i.inhparent = r.oid
    ) AS next (oid)
), relations AS (
  SELECT c.oid, c.xmin, c.relkind, c.relispartition, c.oid::regclass::text AS name
    FROM reads JOIN pg_catalog.pg_class c USING (oid) WHERE c.relkind NOT IN ('i', 'I', 'S')
), triggers AS (
  SELECT t.tgrelid, t.oid, t.xmin, string_to_array(encode(t.tgargs, 'escape'), '\000') AS args,
         t.tgqual IS NULL AND t.tgattr = ''::int2vector AS always,
         -- changes that logical replication brings fire only triggers that are enabled ALWAYS
         t.tgenabled = 'A' OR t.tgenabled = 'O' AND NOT EXISTS
           (SELECT FROM pg_catalog.pg_subscription_rel s WHERE s.srrelid = t.tgrelid) AS enabled,
         -- bits of pg_trigger.tgtype: 1 for each row, 4 insert, 8 delete, 16 update, 32 truncate
         t.tgtype & 29 = 29 AND t.tginitdeferred AS tells_rows,
         t.tgtype & 33 = 32 AS tells_truncate
    FROM pg_catalog.pg_trigger t JOIN relations r ON r.oid = t.tgrelid
   WHERE t.tgfoid = to_regproc('guardian.emit_change')
), gaps AS (
  SELECT '`guardian.' || name || '` is missing' AS gap FROM wanted WHERE to_regclass('guardian.' || name) IS NULL
  UNION ALL
  SELECT '`guardian.grants` reads no table' WHERE to_regclass('guardian.grants') IS NOT NULL
     AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_rewrite w ON w.oid = d.objid
                      WHERE d.classid = 'pg_catalog.pg_rewrite'::regclass AND d.refclassid = 'pg_catalog.pg_class'::regclass
                        AND w.ev_class = to_regclass('guardian.grants') AND d.refobjid <> w.ev_class)
  UNION ALL
  SELECT '`' || r.name || '` is a ' || k.kind || ', whose changes nothing tells of' FROM relations r
    JOIN (VALUES ('m', 'materialized view'), ('f', 'foreign table')) AS k(relkind, kind) ON k.relkind = r.relkind::text
  UNION ALL
  SELECT 'the view `' || r.name || '` reads through the function `' || p.oid::regproc
         || '`, whose tables nothing tells of: declare it IMMUTABLE if it reads none'
    FROM relations r JOIN pg_catalog.pg_rewrite w ON w.ev_class = r.oid AND w.ev_type = '1'
    JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_rewrite'::regclass AND d.objid = w.oid
     AND d.refclassid = 'pg_catalog.pg_proc'::regclass
    JOIN pg_catalog.pg_proc p ON p.oid = d.refobjid AND p.provolatile <> 'i'
   WHERE r.relkind = 'v'
  UNION ALL
  SELECT 'change feed is missing or disabled on `' || r.name || '`' FROM relations r
   WHERE r.relkind IN ('r', 'p')
     AND NOT (EXISTS (SELECT FROM triggers t WHERE t.tgrelid = r.oid AND t.enabled AND t.always AND t.tells_rows)
          -- a partition has no trigger of its own for TRUNCATE; its fingerprint changes
          AND (r.relispartition
               OR EXISTS (SELECT FROM triggers t WHERE t.tgrelid = r.oid AND t.enabled AND t.always AND t.tells_truncate)))
  UNION ALL
  -- the second and third argument of `attach_change_feed` after the relation: the columns of environment and user
  SELECT 'the change feed of `' || r.name || '` names a column `' || a.col || '` that is not there'
    FROM relations r JOIN triggers t ON t.tgrelid = r.oid
    CROSS JOIN LATERAL (VALUES (t.args[2]), (t.args[3])) AS a(col)
   WHERE a.col <> '' AND a.col NOT LIKE '=%' AND NOT EXISTS
     (SELECT FROM pg_catalog.pg_attribute c WHERE c.attrelid = r.oid AND c.attname = a.col AND NOT c.attisdropped)
)
SELECT (SELECT string_agg(DISTINCT gap, '; ' ORDER BY gap) FROM gaps) AS gaps,
       md5(concat_ws(',',
         (SELECT string_agg(r.oid || ':' || r.xmin, ' ' ORDER BY r.oid) FROM relations r),
         (SELECT string_agg(w.oid || ':' || w.xmin, ' ' ORDER BY w.oid) FROM pg_catalog.pg_rewrite w
           WHERE w.ev_class IN (SELECT oid FROM reads)),
         (SELECT string_agg(t.oid || ':' || t.xmin, ' ' ORDER BY t.oid) FROM triggers t),
         (SELECT p.xmin FROM pg_catalog.pg_proc p WHERE p.oid = to_regproc('guardian.emit_change')))) AS fingerprint;

COMMENT ON VIEW guardian.feed_state IS
  'Not seen: row security policies that read other tables, and a view that asks the clock. Where a mapped view translates '
  'users, attach its tables with an empty user column: each change is then followed by a whole reading.';

GRANT SELECT ON guardian.feed_state TO guardian_proxy, guardian_admin, guardian_auditor;

-- As before, but a time in the last years that a timestamp can hold saturates: an error here would fail every row that is
-- read together with this one.
CREATE OR REPLACE FUNCTION guardian.micros(p timestamptz) RETURNS bigint LANGUAGE sql STABLE PARALLEL SAFE AS $$
  SELECT CASE WHEN isfinite(p) THEN least(extract(epoch FROM p) * 1000000, 9223372036854775807)::bigint
              WHEN p = 'infinity' THEN 9223372036854775807
              WHEN p = '-infinity' THEN -9223372036854775807 END
$$;

COMMENT ON VIEW guardian.grants IS
  'What the proxy reads. Map an existing table by replacing this view. A row that cannot be read (scopes that are NULL or no '
  'array of strings, say) is disabled by itself; an expression of the view that raises an error raises it for all rows: give '
  'NULL instead.';

-- As before, with the feed checked on whatever `guardian.grants` reads instead of on tables of fixed names.
CREATE OR REPLACE FUNCTION guardian.self_check(p_env text) RETURNS TABLE (problem text)
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
  UNION ALL SELECT gaps FROM guardian.feed_state WHERE gaps IS NOT NULL
  UNION ALL SELECT 'append-only trigger is missing or disabled'
    WHERE NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'guardian.audit_trail'::regclass
                      AND tgname = 'audit_append_only' AND tgenabled IN ('O', 'A'))
  UNION ALL SELECT 'no audit partition for ' || to_char(d, 'YYYY-MM')
    FROM unnest(ARRAY[now() AT TIME ZONE 'UTC', now() AT TIME ZONE 'UTC' + interval '7 days']) d
    WHERE to_regclass('guardian.audit_trail_' || to_char(d, 'YYYYMM')) IS NULL
  UNION ALL SELECT 'this is a standby: it cannot confirm grants' WHERE pg_is_in_recovery()
$$;

RESET ROLE;
