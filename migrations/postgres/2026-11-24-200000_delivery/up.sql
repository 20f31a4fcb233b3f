-- The Commits of groups. An epoch has one, and a group's epoch is one past its newest Commit's.
CREATE TABLE commits (
  group_id BYTEA NOT NULL,
  epoch BIGINT NOT NULL,
  -- SHA-256 of the Commit: a repetition is told from another one.
  digest BYTEA NOT NULL,
  -- SHA-256 of what the next Commit has to show, which only members can know; NULL where it may come from anybody.
  proof_digest BYTEA,
  at BIGINT NOT NULL,
  PRIMARY KEY (group_id, epoch)
);
CREATE INDEX commits_ageing ON commits (at);

-- What is to be delivered, once for all its recipients.
CREATE TABLE envelopes (
  id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  sender BIGINT NOT NULL REFERENCES devices (id),
  kind TEXT NOT NULL CHECK (kind IN ('welcome', 'commit', 'message', 'unreadable')),
  group_id BYTEA NOT NULL,
  message BYTEA NOT NULL,
  at BIGINT NOT NULL,
  expires_at BIGINT NOT NULL
);
CREATE INDEX envelopes_ageing ON envelopes (expires_at);

-- The queues: one row for each recipient, until it is acknowledged.
CREATE TABLE deliveries (
  id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  device_id BIGINT NOT NULL REFERENCES devices (id),
  envelope_id BIGINT NOT NULL REFERENCES envelopes (id)
);
CREATE INDEX deliveries_of_device ON deliveries (device_id, id);
CREATE INDEX deliveries_of_envelope ON deliveries (envelope_id);
