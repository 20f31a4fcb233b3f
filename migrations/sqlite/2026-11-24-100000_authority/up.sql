-- A removed device keeps its row: its audit trail and its tombstones point at it, and it may be registered again.
ALTER TABLE devices ADD COLUMN removed_at INTEGER;
-- The SHA-256 of the Idempotency-Key that the device was registered with.
ALTER TABLE devices ADD COLUMN registration_key BLOB;

-- SQLite changes no CHECK: the table is made anew. When a KeyPackage was uploaded, the audit trail has.
DROP INDEX key_packages_of_device;
DROP INDEX key_packages_fresh;
DROP INDEX key_packages_handed_out;
DROP INDEX key_packages_reservation;
ALTER TABLE key_packages RENAME TO old_key_packages;
-- Retired: a reservation of it ended, and the operator has it handed out once only.
CREATE TABLE key_packages (
  keypackage_ref BLOB PRIMARY KEY,
  device_id INTEGER NOT NULL REFERENCES devices (id),
  ciphersuite INTEGER NOT NULL,
  key_package BLOB NOT NULL,
  not_after INTEGER NOT NULL,
  last_resort INTEGER NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('available', 'reserved', 'spent', 'revoked', 'expired', 'retired')),
  -- The newest reservation: kept when it lapses or is released, so that its holder can still spend or release it.
  reservation BLOB,
  reserved_by INTEGER REFERENCES devices (id),
  reserved_until INTEGER,
  -- Spent, revoked, expired or retired at, and the group it was spent for.
  ended_at INTEGER,
  spent_group BLOB,
  fresh INTEGER NOT NULL GENERATED ALWAYS AS (state = 'available' AND reservation IS NULL AND NOT last_resort) STORED,
  handed_out INTEGER NOT NULL GENERATED ALWAYS AS (state IN ('available', 'reserved') AND reservation IS NOT NULL) STORED,
  held INTEGER NOT NULL GENERATED ALWAYS AS (state = 'reserved') STORED,
  live INTEGER NOT NULL GENERATED ALWAYS AS (state IN ('available', 'reserved')) STORED,
  CHECK ((reservation IS NULL) = (reserved_by IS NULL) AND (reservation IS NULL) = (reserved_until IS NULL)),
  CHECK (NOT last_resort OR reservation IS NULL)
) STRICT;
INSERT INTO key_packages (keypackage_ref, device_id, ciphersuite, key_package, not_after, last_resort, state, reservation,
  reserved_by, reserved_until, ended_at, spent_group)
SELECT keypackage_ref, device_id, ciphersuite, key_package, not_after, last_resort, state, reservation,
  reserved_by, reserved_until, ended_at, spent_group FROM old_key_packages;
DROP TABLE old_key_packages;
CREATE INDEX key_packages_of_device ON key_packages (device_id, keypackage_ref);
CREATE INDEX key_packages_fresh ON key_packages (device_id, keypackage_ref) WHERE fresh;
CREATE INDEX key_packages_handed_out ON key_packages (device_id, reserved_until) WHERE handed_out;
CREATE UNIQUE INDEX key_packages_reservation ON key_packages (device_id, reservation) WHERE reservation IS NOT NULL;
-- What a device holds of others, and what has lapsed.
CREATE INDEX key_packages_held ON key_packages (reserved_by, reserved_until) WHERE held;
-- What has expired, and what may be forgotten.
CREATE INDEX key_packages_ageing ON key_packages (live, not_after);
CREATE INDEX hpke_keys_ageing ON hpke_keys (not_after);

DROP INDEX audit_events_of_device;
DROP INDEX audit_events_of_reservation;
DROP INDEX audit_events_of_last_resort;
ALTER TABLE audit_events RENAME TO old_audit_events;
CREATE TABLE audit_events (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  device_id INTEGER NOT NULL REFERENCES devices (id),
  keypackage_ref BLOB NOT NULL,
  action TEXT NOT NULL CHECK (action IN ('upload', 'reserve', 'spend', 'release', 'revoke', 'lapse', 'expire')),
  -- No actor: time did it, or the operator.
  actor INTEGER REFERENCES devices (id),
  reservation BLOB,
  group_id BLOB,
  last_resort INTEGER NOT NULL,
  at INTEGER NOT NULL,
  -- Until when what began holds: an upload's not_after, a reservation's end.
  until INTEGER
) STRICT;
INSERT INTO audit_events (id, device_id, keypackage_ref, action, actor, reservation, group_id, last_resort, at)
SELECT id, device_id, keypackage_ref, action, actor, reservation, group_id, last_resort, at FROM old_audit_events;
DROP TABLE old_audit_events;
CREATE INDEX audit_events_of_device ON audit_events (device_id, id);
CREATE INDEX audit_events_of_reservation ON audit_events (device_id, reservation) WHERE reservation IS NOT NULL;
CREATE INDEX audit_events_of_last_resort ON audit_events (device_id, keypackage_ref) WHERE last_resort;

-- The answers that are given again when a request is repeated with its Idempotency-Key; key and request as SHA-256.
CREATE TABLE idempotency_keys (
  device_id INTEGER NOT NULL REFERENCES devices (id),
  key BLOB NOT NULL,
  request BLOB NOT NULL,
  answer BLOB NOT NULL,
  expires_at INTEGER NOT NULL,
  PRIMARY KEY (device_id, key)
) STRICT;
CREATE INDEX idempotency_keys_ageing ON idempotency_keys (expires_at);

-- What lets somebody register the device of a user, once.
CREATE TABLE enrolments (
  token_hash BLOB PRIMARY KEY,
  user_name TEXT NOT NULL,
  created_at INTEGER NOT NULL,
  expires_at INTEGER NOT NULL
) STRICT;
