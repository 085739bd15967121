-- Audit partitions can always be made, also for a month whose rows lie in the default partition already; and they get
-- statistics while they fill, without which the first queries scan everything.
SET LOCAL ROLE guardian_owner;

CREATE OR REPLACE FUNCTION guardian.ensure_partitions(p_months_ahead integer DEFAULT 2)
RETURNS TABLE (partition_name text, result text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  m timestamptz; until timestamptz; part text; moved bigint;
  base timestamp := date_trunc('month', now() AT TIME ZONE 'UTC');
BEGIN
  LOCK TABLE guardian.retention_log IN EXCLUSIVE MODE;   -- one maker at a time
  FOR i IN -1 .. greatest(0, least(p_months_ahead, 24)) LOOP
    m := (base + make_interval(months => greatest(i, 0))) AT TIME ZONE 'UTC';
    until := (m AT TIME ZONE 'UTC' + interval '1 month') AT TIME ZONE 'UTC';
    part := 'audit_trail_' || CASE WHEN i = -1 THEN 'default' ELSE to_char(m AT TIME ZONE 'UTC', 'YYYYMM') END;
    CONTINUE WHEN to_regclass('guardian.' || part) IS NOT NULL;
    result := 'created';
    IF i = -1 THEN
      EXECUTE format('CREATE TABLE guardian.%I PARTITION OF guardian.audit_trail DEFAULT', part);
    ELSE
      -- Rows of this month may lie in the default partition. They move as they are: the trigger that refuses a change is off
      -- on that partition alone, for this statement, under a lock that nobody else gets past.
      EXECUTE format('CREATE TABLE guardian.%I (LIKE guardian.audit_trail INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', part);
      LOCK TABLE guardian.audit_trail_default IN ACCESS EXCLUSIVE MODE;
      IF EXISTS (SELECT FROM guardian.audit_trail_default WHERE occurred_at >= m AND occurred_at < until) THEN
        ALTER TABLE guardian.audit_trail_default DISABLE TRIGGER audit_append_only;
        EXECUTE format('WITH moved AS (DELETE FROM guardian.audit_trail_default
                        WHERE occurred_at >= %L AND occurred_at < %L RETURNING *)
                        INSERT INTO guardian.%I SELECT * FROM moved', m, until, part);
        GET DIAGNOSTICS moved = ROW_COUNT;
        ALTER TABLE guardian.audit_trail_default ENABLE TRIGGER audit_append_only;
        result := 'created, with ' || moved || ' rows of the default partition';
      END IF;
      EXECUTE format('ALTER TABLE guardian.audit_trail ATTACH PARTITION guardian.%I FOR VALUES FROM (%L) TO (%L)', part, m, until);
    END IF;
    EXECUTE format('ALTER TABLE guardian.%I ENABLE ROW LEVEL SECURITY', part);  -- no policy: shut
    EXECUTE format('CREATE TRIGGER no_truncate BEFORE TRUNCATE ON guardian.%I
                    FOR EACH STATEMENT EXECUTE FUNCTION guardian.refuse_change()', part);
    partition_name := part; RETURN NEXT;
  END LOOP;
END $$;

-- Statistics of the month that is being written.
CREATE FUNCTION guardian.analyze_audit() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE part text := 'audit_trail_' || to_char(now() AT TIME ZONE 'UTC', 'YYYYMM');
BEGIN
  IF to_regclass('guardian.' || part) IS NOT NULL THEN
    EXECUTE format('ANALYZE guardian.%I', part);
  END IF;
END $$;
REVOKE ALL ON FUNCTION guardian.analyze_audit() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION guardian.analyze_audit() TO guardian_proxy, guardian_admin;

SELECT guardian.ensure_partitions(2);
RESET ROLE;
