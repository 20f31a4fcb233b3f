DROP TABLE enrolments;
DROP TABLE idempotency_keys;

DROP INDEX audit_events_of_device;
DROP INDEX audit_events_of_reservation;
DROP INDEX audit_events_of_last_resort;
ALTER TABLE audit_events RENAME TO new_audit_events;
CREATE TABLE audit_events (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  device_id INTEGER NOT NULL REFERENCES devices (id),
  keypackage_ref BLOB NOT NULL,
  action TEXT NOT NULL CHECK (action IN ('upload', 'reserve', 'spend', 'release', 'revoke')),
  actor INTEGER NOT NULL REFERENCES devices (id),
  reservation BLOB,
  group_id BLOB,
  last_resort INTEGER NOT NULL,
  at INTEGER NOT NULL
) STRICT;
INSERT INTO audit_events (id, device_id, keypackage_ref, action, actor, reservation, group_id, last_resort, at)
SELECT id, device_id, keypackage_ref, action, actor, reservation, group_id, last_resort, at FROM new_audit_events
WHERE actor IS NOT NULL AND action NOT IN ('lapse', 'expire');
DROP TABLE new_audit_events;
CREATE INDEX audit_events_of_device ON audit_events (device_id, id);
CREATE INDEX audit_events_of_reservation ON audit_events (device_id, reservation) WHERE reservation IS NOT NULL;
CREATE INDEX audit_events_of_last_resort ON audit_events (device_id, keypackage_ref) WHERE last_resort;

DROP INDEX hpke_keys_ageing;
DROP INDEX key_packages_of_device;
DROP INDEX key_packages_fresh;
DROP INDEX key_packages_handed_out;
DROP INDEX key_packages_reservation;
DROP INDEX key_packages_held;
DROP INDEX key_packages_ageing;
ALTER TABLE key_packages RENAME TO new_key_packages;
CREATE TABLE key_packages (
  keypackage_ref BLOB PRIMARY KEY,
  device_id INTEGER NOT NULL REFERENCES devices (id),
  ciphersuite INTEGER NOT NULL,
  key_package BLOB NOT NULL,
  not_after INTEGER NOT NULL,
  last_resort INTEGER NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('available', 'reserved', 'spent', 'revoked', 'expired')),
  uploaded_at INTEGER NOT NULL,
  -- The newest reservation: kept when it lapses or is released, so that its holder can still spend or release it.
  reservation BLOB,
  reserved_by INTEGER REFERENCES devices (id),
  reserved_until INTEGER,
  -- Spent, revoked, expired or retired at, and the group it was spent for.
  ended_at INTEGER,
  spent_group BLOB,
  fresh INTEGER NOT NULL GENERATED ALWAYS AS (state = 'available' AND reservation IS NULL AND NOT last_resort) STORED,
  handed_out INTEGER NOT NULL GENERATED ALWAYS AS (state IN ('available', 'reserved') AND reservation IS NOT NULL) STORED,
  CHECK ((reservation IS NULL) = (reserved_by IS NULL) AND (reservation IS NULL) = (reserved_until IS NULL)),
  CHECK (NOT last_resort OR reservation IS NULL)
) STRICT;
INSERT INTO key_packages (keypackage_ref, device_id, ciphersuite, key_package, not_after, last_resort, state, uploaded_at,
  reservation, reserved_by, reserved_until, ended_at, spent_group)
SELECT keypackage_ref, device_id, ciphersuite, key_package, not_after, last_resort, iif(state = 'retired', 'revoked', state),
  coalesce((SELECT min(at) FROM audit_events WHERE audit_events.device_id = new_key_packages.device_id
    AND audit_events.keypackage_ref = new_key_packages.keypackage_ref AND action = 'upload'), 0),
  reservation, reserved_by, reserved_until, ended_at, spent_group FROM new_key_packages;
DROP TABLE new_key_packages;
CREATE INDEX key_packages_of_device ON key_packages (device_id, state);
CREATE INDEX key_packages_fresh ON key_packages (device_id, keypackage_ref) WHERE fresh;
CREATE INDEX key_packages_handed_out ON key_packages (device_id, reserved_until) WHERE handed_out;
CREATE UNIQUE INDEX key_packages_reservation ON key_packages (device_id, reservation) WHERE reservation IS NOT NULL;

-- A removed device is there again; its token stays dead, since no token has this hash.
UPDATE devices SET token_hash = randomblob(32) WHERE removed_at IS NOT NULL;
ALTER TABLE devices DROP COLUMN registration_key;
ALTER TABLE devices DROP COLUMN removed_at;
