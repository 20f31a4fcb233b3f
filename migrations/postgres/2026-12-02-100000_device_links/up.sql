-- The codes by which devices let a further device of their user in: one for each device.
CREATE TABLE device_links (
  device_id BIGINT NOT NULL PRIMARY KEY,
  user_name TEXT NOT NULL,
  -- The SHA-256 of the code.
  code_hash BYTEA NOT NULL UNIQUE,
  -- The device's token when it made the code, as SHA-256: the code ends with it.
  made_with BYTEA NOT NULL,
  expires_at BIGINT NOT NULL,
  -- The wrong codes that were sent for the user since.
  guesses INTEGER NOT NULL DEFAULT 0,
  -- The name of the device that used it.
  used_by TEXT
);
CREATE INDEX device_links_of_user ON device_links (user_name);
CREATE INDEX device_links_ageing ON device_links (expires_at);
