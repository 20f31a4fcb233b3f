-- Times are seconds since the Unix epoch.

CREATE TABLE users (
  name TEXT PRIMARY KEY,
  created_at BIGINT NOT NULL
);

CREATE TABLE devices (
  id BIGINT PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
  user_name TEXT NOT NULL REFERENCES users (name),
  device_name TEXT NOT NULL,
  token_hash BYTEA NOT NULL UNIQUE,
  created_at BIGINT NOT NULL,
  last_upload BIGINT,
  UNIQUE (user_name, device_name)
);

-- The ref is unique over all devices: nobody can offer another's KeyPackage a second time.
CREATE TABLE key_packages (
  keypackage_ref BYTEA PRIMARY KEY,
  device_id BIGINT NOT NULL REFERENCES devices (id),
  ciphersuite INTEGER NOT NULL,
  key_package BYTEA NOT NULL,
  not_after BIGINT NOT NULL,
  last_resort BOOLEAN NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('available', 'reserved', 'spent', 'revoked', 'expired')),
  uploaded_at BIGINT NOT NULL,
  -- The newest reservation: kept when it lapses or is released, so that its holder can still spend or release it.
  reservation BYTEA,
  reserved_by BIGINT REFERENCES devices (id),
  reserved_until BIGINT,
  -- Spent, revoked or expired at, and the group it was spent for.
  ended_at BIGINT,
  spent_group BYTEA,
  fresh BOOLEAN NOT NULL GENERATED ALWAYS AS (state = 'available' AND reservation IS NULL AND NOT last_resort) STORED,
  handed_out BOOLEAN NOT NULL GENERATED ALWAYS AS (state IN ('available', 'reserved') AND reservation IS NOT NULL) STORED,
  CHECK ((reservation IS NULL) = (reserved_by IS NULL) AND (reservation IS NULL) = (reserved_until IS NULL)),
  CHECK (NOT last_resort OR reservation IS NULL)
);
CREATE INDEX key_packages_of_device ON key_packages (device_id, state);
CREATE INDEX key_packages_fresh ON key_packages (device_id, keypackage_ref) WHERE fresh;
CREATE INDEX key_packages_handed_out ON key_packages (device_id, reserved_until) WHERE handed_out;
CREATE UNIQUE INDEX key_packages_reservation ON key_packages (device_id, reservation) WHERE reservation IS NOT NULL;

-- Every init key and encryption key that a device ever had in the pool: none may come again in another KeyPackage.
CREATE TABLE hpke_keys (
  device_id BIGINT NOT NULL REFERENCES devices (id),
  public_key BYTEA NOT NULL,
  keypackage_ref BYTEA NOT NULL,
  not_after BIGINT NOT NULL,
  PRIMARY KEY (device_id, public_key)
);

-- One row a transition. The actor is the device that made it.
CREATE TABLE audit_events (
  id BIGINT PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
  device_id BIGINT NOT NULL REFERENCES devices (id),
  keypackage_ref BYTEA NOT NULL,
  action TEXT NOT NULL CHECK (action IN ('upload', 'reserve', 'spend', 'release', 'revoke')),
  actor BIGINT NOT NULL REFERENCES devices (id),
  reservation BYTEA,
  group_id BYTEA,
  last_resort BOOLEAN NOT NULL,
  at BIGINT NOT NULL
);
CREATE INDEX audit_events_of_device ON audit_events (device_id, id);
CREATE INDEX audit_events_of_reservation ON audit_events (device_id, reservation) WHERE reservation IS NOT NULL;
CREATE INDEX audit_events_of_last_resort ON audit_events (device_id, keypackage_ref) WHERE last_resort;
