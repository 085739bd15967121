-- What a start compares its journal with. The proxy's login cannot read the trail: it learns whether the records of an
-- incarnation are there that it can name, 128 random bits, and reads the starts and gaps of an instance that it can name.
SET LOCAL ROLE guardian_owner;

-- How many of these records there are, and the last one of the incarnation.
CREATE FUNCTION guardian.trail_span(p_incarnation bytea, p_from bigint, p_until bigint)
RETURNS TABLE (stored bigint, newest bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  SELECT (SELECT count(DISTINCT seq) FROM guardian.audit_trail
          WHERE incarnation = p_incarnation AND seq >= p_from AND seq < p_until),
         (SELECT max(seq) FROM guardian.audit_trail WHERE incarnation = p_incarnation)
$$;

-- Whether a record is there with this leaf or this head.
CREATE FUNCTION guardian.trail_has(p_incarnation bytea, p_seq bigint, p_leaf bytea, p_head bytea) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  SELECT EXISTS (SELECT FROM guardian.audit_trail WHERE incarnation = p_incarnation AND seq = p_seq
                 AND (leaf = p_leaf OR head = p_head))
$$;

-- The newest starts and gaps of an instance.
CREATE FUNCTION guardian.trail_starts(p_env text, p_instance text) RETURNS TABLE (bytes bytea)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  SELECT t.bytes FROM guardian.audit_trail t
  WHERE t.environment = p_env AND guardian.env_ok(p_env, guardian.environments_of(session_user))
    AND t.kind IN ('start', 'gap') AND length(p_instance) = 32
    AND position(convert_to(p_instance, 'UTF8') IN t.bytes) > 0
  ORDER BY t.occurred_at DESC LIMIT 10000
$$;

-- Rows before this time may have been dropped: their partitions were, through the function for that or by hand. A partition
-- that is older than the database was never there.
CREATE FUNCTION guardian.trail_kept_since() RETURNS timestamptz
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  WITH partition AS (
    SELECT to_timestamp(right(c.relname, 6), 'YYYYMM')::timestamp AT TIME ZONE 'UTC' AS begins
    FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
    WHERE i.inhparent = 'guardian.audit_trail'::regclass AND c.relname ~ '^audit_trail_\d{6}$')
  SELECT greatest(
    (SELECT max((to_timestamp(right(partition_name, 6), 'YYYYMM')::timestamp + interval '1 month') AT TIME ZONE 'UTC')
     FROM guardian.retention_log),
    (SELECT min(begins) FROM partition HAVING min(begins) > (SELECT min(installed_on) FROM guardian.migrations)))
$$;

REVOKE ALL ON FUNCTION guardian.trail_span(bytea, bigint, bigint), guardian.trail_has(bytea, bigint, bytea, bytea),
  guardian.trail_starts(text, text), guardian.trail_kept_since() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION guardian.trail_span(bytea, bigint, bigint), guardian.trail_has(bytea, bigint, bytea, bytea),
  guardian.trail_starts(text, text), guardian.trail_kept_since() TO guardian_proxy;
RESET ROLE;
