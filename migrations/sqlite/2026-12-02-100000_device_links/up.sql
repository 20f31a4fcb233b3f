-- The codes by which devices let a further device of their user in: one for each device.
CREATE TABLE device_links (
  device_id INTEGER NOT NULL PRIMARY KEY REFERENCES devices (id),
  user_name TEXT NOT NULL,
  -- The SHA-256 of the code.
  code_hash BLOB NOT NULL UNIQUE,
  -- The device's token when it made the code, as SHA-256: the code ends with it.
  made_with BLOB NOT NULL,
  expires_at INTEGER NOT NULL,
  -- The wrong codes that were sent for the user since.
  guesses INTEGER NOT NULL DEFAULT 0,
  -- The name of the device that used it.
  used_by TEXT
) STRICT;
CREATE INDEX device_links_of_user ON device_links (user_name);
CREATE INDEX device_links_ageing ON device_links (expires_at);
