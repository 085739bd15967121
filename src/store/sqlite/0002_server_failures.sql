-- Why a server could not be asked for its tools, while it lasts, so that commands can say so.
CREATE TABLE server_failures (
  environment TEXT NOT NULL,
  server      TEXT NOT NULL,
  failure     TEXT NOT NULL CHECK (length(failure) <= 8000),
  since       INTEGER NOT NULL,
  seen_at     INTEGER NOT NULL,
  PRIMARY KEY (environment, server)
) STRICT, WITHOUT ROWID;
