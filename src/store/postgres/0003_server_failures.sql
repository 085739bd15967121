-- Why a server could not be asked for its tools, while it lasts, so that commands can say so. What a program wrote to its
-- standard error is part of it: for administrators alone.
SET LOCAL ROLE guardian_owner;

CREATE TABLE guardian.server_failures (
  environment text NOT NULL,
  server      text NOT NULL,
  failure     text NOT NULL CHECK (length(failure) <= 8000),
  since       timestamptz NOT NULL DEFAULT now(),
  seen_at     timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (environment, server)
);

ALTER TABLE guardian.server_failures ENABLE ROW LEVEL SECURITY;
CREATE POLICY proxy_writes ON guardian.server_failures FOR ALL TO guardian_proxy
  USING (guardian.env_ok(environment, (SELECT guardian.environments_of(current_user))))
  WITH CHECK (guardian.env_ok(environment, (SELECT guardian.environments_of(current_user))));
CREATE POLICY admin_reads ON guardian.server_failures FOR SELECT TO guardian_admin
  USING (guardian.env_ok(environment, (SELECT guardian.environments_of(current_user))));

GRANT SELECT, INSERT, UPDATE, DELETE ON guardian.server_failures TO guardian_proxy;
GRANT SELECT ON guardian.server_failures TO guardian_admin;

RESET ROLE;
