-- What the log needs of a KeyPackage: its name there, the number of its last step (transparency.md: 4n + 0 to 3), and the event
-- that began its last hand-out.
ALTER TABLE key_packages ADD COLUMN package_id BLOB;
ALTER TABLE key_packages ADD COLUMN step INTEGER NOT NULL DEFAULT -1;
ALTER TABLE key_packages ADD COLUMN opened INTEGER;
-- KeyPackages that a server of the version before has taken.
CREATE INDEX key_packages_unnamed ON key_packages (device_id) WHERE package_id IS NULL AND live;
-- What an event's leaf is made from. `opened`: the event that began the hand-out which this one ends; of the beginning of a
-- hand-out, the one that began the hand-out before.
ALTER TABLE audit_events ADD COLUMN package_id BLOB;
ALTER TABLE audit_events ADD COLUMN step INTEGER;
ALTER TABLE audit_events ADD COLUMN bind BLOB;
ALTER TABLE audit_events ADD COLUMN opened INTEGER;

-- The logs that this database has had, each with its public key once a server with the key file has seen it.
CREATE TABLE log_origins (
  k INTEGER PRIMARY KEY,
  name TEXT NOT NULL,
  key TEXT,
  -- The note by which the key of the log before names this one's.
  key_note TEXT,
  -- How much of the log before is kept.
  kept_size INTEGER,
  kept_root BLOB
) STRICT;
-- The newest log: its size and root, and the last event that is in it.
CREATE TABLE log_state (
  id INTEGER PRIMARY KEY CHECK (id = 1),
  k INTEGER NOT NULL,
  size INTEGER NOT NULL,
  root BLOB NOT NULL,
  at INTEGER NOT NULL,
  last_event INTEGER NOT NULL
) STRICT;
-- Tiles of hashes by level, and bundles of entries at level -1.
CREATE TABLE log_tiles (
  k INTEGER NOT NULL,
  level INTEGER NOT NULL,
  number INTEGER NOT NULL,
  bytes BLOB NOT NULL,
  PRIMARY KEY (k, level, number)
) STRICT;
-- Where the leaves of events are: 256 events a row, 16 bytes each, in two parts of two bytes of the log's number and six of the
-- leaf's index.
CREATE TABLE log_positions (
  chunk INTEGER PRIMARY KEY,
  positions BLOB NOT NULL
) STRICT;
-- The secrets from which the salts of an owner's leaves are derived. Without one, its leaves are noise.
CREATE TABLE log_secrets (
  device_id INTEGER PRIMARY KEY,
  secret BLOB NOT NULL
) STRICT;
