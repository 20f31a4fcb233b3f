-- Random keys that all servers share. `group-ids` makes the digests by which owners see for which groups their KeyPackages are
-- reserved. The server that needs a key first makes it.
CREATE TABLE server_keys (
  name TEXT PRIMARY KEY,
  key BYTEA NOT NULL
);
