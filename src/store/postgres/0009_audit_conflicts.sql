-- The proxy's login may add rows to the audit trail and cannot read them. This tells it which of the records that it shipped are
-- not there, and which share their number with a row that holds something else.
SET LOCAL ROLE guardian_owner;

-- One row for each record that is not there (`present` is false) or has other rows under its number. `leaf` is that of one other
-- row; rows of environments that this login is not bound to are told of only where they keep a record out, and without their leaf.
--
-- occurred_at is part of the primary key, so that rows under one number may lie in any partition: the range of numbers is read from
-- each partition's index, never a whole partition. A plan made while a partition was empty must not stay a scan when it is full.
CREATE FUNCTION guardian.compare_audit(p_incarnation bytea, p_seqs bigint[], p_leaves bytea[])
RETURNS TABLE (seq bigint, present boolean, others bigint, leaf bytea)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
  envs text[] := guardian.environments_of(session_user);
  first_seq bigint; last_seq bigint;
BEGIN
  IF p_incarnation = '\x00000000000000000000000000000000' THEN
    RAISE EXCEPTION 'the rows of the database itself are not compared' USING ERRCODE = 'insufficient_privilege';
  END IF;
  SELECT min(s), max(s) INTO first_seq, last_seq FROM unnest(p_seqs) s;
  RETURN QUERY
    WITH there AS MATERIALIZED (
      -- a leaf is 32 bytes; whoever adds rows may write others
      SELECT a.seq, CASE WHEN octet_length(a.leaf) <= 32 THEN a.leaf END AS leaf, guardian.env_ok(a.environment, envs) AS ours
      FROM guardian.audit_trail a
      WHERE a.incarnation = p_incarnation AND a.seq BETWEEN first_seq AND last_seq
    ), compared AS (
      SELECT w.seq, coalesce(bool_or(t.ours AND t.leaf = w.leaf), false) AS present,
             count(*) FILTER (WHERE t.ours AND t.leaf IS DISTINCT FROM w.leaf) AS others,
             count(*) FILTER (WHERE NOT t.ours) AS foreign_rows,
             decode(min(encode(t.leaf, 'hex')) FILTER (WHERE t.ours AND t.leaf IS DISTINCT FROM w.leaf), 'hex') AS leaf
      FROM unnest(p_seqs, p_leaves) AS w (seq, leaf) LEFT JOIN there t ON t.seq = w.seq
      GROUP BY w.seq
    )
    SELECT c.seq, c.present, c.others + CASE WHEN c.present THEN 0 ELSE c.foreign_rows END, c.leaf
    FROM compared c
    WHERE NOT c.present OR c.others > 0;
END $$;
REVOKE ALL ON FUNCTION guardian.compare_audit(bytea, bigint[], bytea[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION guardian.compare_audit(bytea, bigint[], bytea[]) TO guardian_proxy;
RESET ROLE;
