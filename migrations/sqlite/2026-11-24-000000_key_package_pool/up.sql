-- Times are seconds since the Unix epoch.

CREATE TABLE users (
  name TEXT PRIMARY KEY,
  created_at INTEGER NOT NULL
) STRICT;

CREATE TABLE devices (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  user_name TEXT NOT NULL REFERENCES users (name),
  device_name TEXT NOT NULL,
  token_hash BLOB NOT NULL UNIQUE,
  created_at INTEGER NOT NULL,
  last_upload INTEGER,
  UNIQUE (user_name, device_name)
) STRICT;

-- The ref is unique over all devices: nobody can offer another's KeyPackage a second time.
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
  -- Spent, revoked or expired at, and the group it was spent for.
  ended_at INTEGER,
  spent_group BLOB,
  fresh INTEGER NOT NULL GENERATED ALWAYS AS (state = 'available' AND reservation IS NULL AND NOT last_resort) STORED,
  handed_out INTEGER NOT NULL GENERATED ALWAYS AS (state IN ('available', 'reserved') AND reservation IS NOT NULL) STORED,
  CHECK ((reservation IS NULL) = (reserved_by IS NULL) AND (reservation IS NULL) = (reserved_until IS NULL)),
  CHECK (NOT last_resort OR reservation IS NULL)
) STRICT;
CREATE INDEX key_packages_of_device ON key_packages (device_id, state);
CREATE INDEX key_packages_fresh ON key_packages (device_id, keypackage_ref) WHERE fresh;
CREATE INDEX key_packages_handed_out ON key_packages (device_id, reserved_until) WHERE handed_out;
CREATE UNIQUE INDEX key_packages_reservation ON key_packages (device_id, reservation) WHERE reservation IS NOT NULL;

-- Every init key and encryption key that a device ever had in the pool: none may come again in another KeyPackage.
CREATE TABLE hpke_keys (
  device_id INTEGER NOT NULL REFERENCES devices (id),
  public_key BLOB NOT NULL,
  keypackage_ref BLOB NOT NULL,
  not_after INTEGER NOT NULL,
  PRIMARY KEY (device_id, public_key)
) STRICT;

-- One row a transition. The actor is the device that made it.
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
CREATE INDEX audit_events_of_device ON audit_events (device_id, id);
CREATE INDEX audit_events_of_reservation ON audit_events (device_id, reservation) WHERE reservation IS NOT NULL;
CREATE INDEX audit_events_of_last_resort ON audit_events (device_id, keypackage_ref) WHERE last_resort;
