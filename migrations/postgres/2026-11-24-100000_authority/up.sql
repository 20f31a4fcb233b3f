-- A removed device keeps its row: its audit trail and its tombstones point at it, and it may be registered again.
ALTER TABLE devices ADD COLUMN removed_at BIGINT;
-- The SHA-256 of the Idempotency-Key that the device was registered with.
ALTER TABLE devices ADD COLUMN registration_key BYTEA;

-- Retired: a reservation of it ended, and the operator has it handed out once only.
ALTER TABLE key_packages DROP CONSTRAINT key_packages_state_check;
ALTER TABLE key_packages ADD CONSTRAINT key_packages_state_check
  CHECK (state IN ('available', 'reserved', 'spent', 'revoked', 'expired', 'retired'));
ALTER TABLE key_packages
  ADD COLUMN held BOOLEAN NOT NULL GENERATED ALWAYS AS (state = 'reserved') STORED,
  ADD COLUMN live BOOLEAN NOT NULL GENERATED ALWAYS AS (state IN ('available', 'reserved')) STORED;
-- The audit trail has it.
ALTER TABLE key_packages DROP COLUMN uploaded_at;
DROP INDEX key_packages_of_device;
CREATE INDEX key_packages_of_device ON key_packages (device_id, keypackage_ref);
-- What a device holds of others, and what has lapsed.
CREATE INDEX key_packages_held ON key_packages (reserved_by, reserved_until) WHERE held;
-- What has expired, and what may be forgotten.
CREATE INDEX key_packages_ageing ON key_packages (live, not_after);
CREATE INDEX hpke_keys_ageing ON hpke_keys (not_after);

ALTER TABLE audit_events DROP CONSTRAINT audit_events_action_check;
ALTER TABLE audit_events ADD CONSTRAINT audit_events_action_check
  CHECK (action IN ('upload', 'reserve', 'spend', 'release', 'revoke', 'lapse', 'expire'));
-- No actor: time did it, or the operator.
ALTER TABLE audit_events ALTER COLUMN actor DROP NOT NULL;
-- Until when what began holds: an upload's not_after, a reservation's end.
ALTER TABLE audit_events ADD COLUMN until BIGINT;

-- The answers that are given again when a request is repeated with its Idempotency-Key; key and request as SHA-256.
CREATE TABLE idempotency_keys (
  device_id BIGINT NOT NULL REFERENCES devices (id),
  key BYTEA NOT NULL,
  request BYTEA NOT NULL,
  answer BYTEA NOT NULL,
  expires_at BIGINT NOT NULL,
  PRIMARY KEY (device_id, key)
);
CREATE INDEX idempotency_keys_ageing ON idempotency_keys (expires_at);

-- What lets somebody register the device of a user, once.
CREATE TABLE enrolments (
  token_hash BYTEA PRIMARY KEY,
  user_name TEXT NOT NULL,
  created_at BIGINT NOT NULL,
  expires_at BIGINT NOT NULL
);
