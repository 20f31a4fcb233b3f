-- The signature keys of devices, by registration: a device that is registered anew begins with none. No key comes twice in
-- one registration, so that a change that was signed once cannot be sent again. NULL in `until`: the current key, where the
-- device still has this registration. A server of the version before does not close the keys of a device that it removes.
-- What is in the pools already has its keys noted by the server when it starts, since only the server knows whether it binds
-- credentials at all.
CREATE TABLE signature_keys (
  device_id BIGINT NOT NULL,
  registered_at BIGINT NOT NULL,
  ciphersuite INTEGER NOT NULL,
  signature_key BYTEA NOT NULL,
  since BIGINT NOT NULL,
  until BIGINT,
  PRIMARY KEY (device_id, registered_at, ciphersuite, signature_key)
);
CREATE UNIQUE INDEX signature_keys_current ON signature_keys (device_id, registered_at, ciphersuite) WHERE until IS NULL;

-- An event with a key is `signature-key-changed`, whatever its action says: it is written as a second `upload`, which servers
-- of the version before can read.
ALTER TABLE audit_events ADD COLUMN signature_key BYTEA;

-- Raised when one of a user's devices is registered, removed, or changes its signature key.
ALTER TABLE users ADD COLUMN devices_version BIGINT NOT NULL DEFAULT 0;
