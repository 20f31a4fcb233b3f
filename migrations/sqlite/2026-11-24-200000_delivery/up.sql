-- The Commits of groups. An epoch has one, and a group's epoch is one past its newest Commit's.
CREATE TABLE commits (
  group_id BLOB NOT NULL,
  epoch INTEGER NOT NULL,
  -- SHA-256 of the Commit: a repetition is told from another one.
  digest BLOB NOT NULL,
  -- SHA-256 of what the next Commit has to show, which only members can know; NULL where it may come from anybody.
  proof_digest BLOB,
  at INTEGER NOT NULL,
  PRIMARY KEY (group_id, epoch)
) STRICT;
CREATE INDEX commits_ageing ON commits (at);

-- What is to be delivered, once for all its recipients.
CREATE TABLE envelopes (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  sender INTEGER NOT NULL REFERENCES devices (id),
  kind TEXT NOT NULL CHECK (kind IN ('welcome', 'commit', 'message', 'unreadable')),
  group_id BLOB NOT NULL,
  message BLOB NOT NULL,
  at INTEGER NOT NULL,
  expires_at INTEGER NOT NULL
) STRICT;
CREATE INDEX envelopes_ageing ON envelopes (expires_at);

-- The queues: one row for each recipient, until it is acknowledged.
CREATE TABLE deliveries (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  device_id INTEGER NOT NULL REFERENCES devices (id),
  envelope_id INTEGER NOT NULL REFERENCES envelopes (id)
) STRICT;
CREATE INDEX deliveries_of_device ON deliveries (device_id, id);
CREATE INDEX deliveries_of_envelope ON deliveries (envelope_id);
