//! Our tables, and their migrations.

use rusqlite::Connection;
use rusqlite_migration::{Error as MigrationError, M, MigrationDefinitionError, Migrations};

use crate::error::{Error, Result};

/// One entry for each version of the schema. `PRAGMA user_version` counts those that ran. Never change an entry: add one.
pub(super) const MIGRATIONS: [&str; 11] = [
    "
    CREATE TABLE keypackage_pool_metadata (
        ref         BLOB    NOT NULL PRIMARY KEY,
        status      TEXT    NOT NULL
                    CHECK (status IN ('created', 'uploaded', 'available', 'reserved', 'spent', 'expired', 'failed')),
        created_at  INTEGER NOT NULL,
        uploaded_at INTEGER,
        not_after   INTEGER NOT NULL,
        ciphersuite INTEGER NOT NULL,
        last_resort INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE device_identity (
        id            INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
        server        TEXT    NOT NULL,
        user          TEXT    NOT NULL,
        device        TEXT    NOT NULL,
        token         TEXT,
        signature_key BLOB    NOT NULL
    ) STRICT;
    ",
    "
    ALTER TABLE keypackage_pool_metadata ADD COLUMN reserved_at INTEGER;
    ALTER TABLE keypackage_pool_metadata ADD COLUMN reservation_id TEXT;
    ALTER TABLE keypackage_pool_metadata ADD COLUMN reservation_expires_at INTEGER;
    ALTER TABLE keypackage_pool_metadata ADD COLUMN reserved_by TEXT;
    ALTER TABLE keypackage_pool_metadata ADD COLUMN spent_at INTEGER;
    ALTER TABLE keypackage_pool_metadata ADD COLUMN spent_by TEXT;
    ALTER TABLE keypackage_pool_metadata ADD COLUMN spent_group_id BLOB;
    -- Until when the keys of a failed KeyPackage are kept: NULL if no adder can have it.
    ALTER TABLE keypackage_pool_metadata ADD COLUMN keep_until INTEGER;
    -- Whether the signature key was rotated away, so that the KeyPackage has to be revoked on the server.
    ALTER TABLE keypackage_pool_metadata ADD COLUMN superseded INTEGER NOT NULL DEFAULT 0;
    CREATE INDEX keypackage_pool_metadata_status ON keypackage_pool_metadata (status);
    CREATE INDEX keypackage_pool_metadata_expiry ON keypackage_pool_metadata (not_after);
    CREATE INDEX keypackage_pool_metadata_creation ON keypackage_pool_metadata (created_at);

    -- The Idempotency-Key of the registration, until the token is stored.
    ALTER TABLE device_identity ADD COLUMN registration_key TEXT;

    -- The ciphersuites in which this device keeps a pool, each with its current public signature key.
    CREATE TABLE device_ciphersuites (
        ciphersuite   INTEGER NOT NULL PRIMARY KEY,
        signature_key BLOB    NOT NULL
    ) STRICT;
    INSERT INTO device_ciphersuites (ciphersuite, signature_key) SELECT 1, signature_key FROM device_identity;
    ALTER TABLE device_identity DROP COLUMN signature_key;

    -- When the pool on the server had KeyPackages that this device did not generate.
    CREATE TABLE foreign_key_packages (
        seen_at INTEGER NOT NULL
    ) STRICT;
    ",
    "
    -- The groups that this device is in.
    CREATE TABLE device_groups (
        group_id  BLOB    NOT NULL PRIMARY KEY,
        name      TEXT,
        joined_at INTEGER NOT NULL
    ) STRICT;
    -- Commits that the server has not answered: at most one for each group.
    CREATE TABLE pending_commits (
        group_id BLOB NOT NULL PRIMARY KEY,
        request  TEXT NOT NULL
    ) STRICT;
    -- Processed messages of the queue that are not marked as done, by their ids in the queue.
    CREATE TABLE inbox (
        id       INTEGER NOT NULL PRIMARY KEY,
        incoming TEXT    NOT NULL
    ) STRICT;
    ",
    "
    -- The last restore of the server's database that this device has handled.
    ALTER TABLE device_identity ADD COLUMN fenced_at INTEGER;
    ",
    "
    -- The signature keys with which members of groups were accepted, by the credential in their leaves.
    CREATE TABLE seen_signature_keys (
        identity      BLOB    NOT NULL,
        ciphersuite   INTEGER NOT NULL,
        signature_key BLOB    NOT NULL,
        seen_at       INTEGER NOT NULL,
        PRIMARY KEY (identity, ciphersuite, signature_key)
    ) STRICT, WITHOUT ROWID;
    -- The sender of a Commit that this device refused: since then, this device is behind the group's epoch.
    ALTER TABLE device_groups ADD COLUMN refused_commit_by TEXT;
    -- The group that replaced this one, which is read-only since then.
    ALTER TABLE device_groups ADD COLUMN replaced_by BLOB;
    -- The signature key that replaces the current one once the server has accepted it.
    ALTER TABLE device_ciphersuites ADD COLUMN next_signature_key BLOB;
    -- The user's devices as the server last listed them, in JSON, and the version of the list.
    ALTER TABLE device_identity ADD COLUMN own_devices TEXT;
    ALTER TABLE device_identity ADD COLUMN own_devices_version INTEGER;
    ",
    "
    -- The proofs of membership in an epoch: a server that was restored from a backup asks for that of a past epoch.
    CREATE TABLE commit_proofs (
        group_id BLOB    NOT NULL,
        epoch    INTEGER NOT NULL,
        proof    BLOB    NOT NULL,
        PRIMARY KEY (group_id, epoch)
    ) STRICT, WITHOUT ROWID;
    ",
    "
    -- Why this device refused the Commit.
    ALTER TABLE device_groups ADD COLUMN refused_commit_reason TEXT;
    -- The epoch in which this device last refused a proposal because of a leaf in it.
    ALTER TABLE device_groups ADD COLUMN refused_proposal_epoch INTEGER;
    ",
    "
    -- Whether the pending Commit is external: by it, this device comes back into a group in which it fell behind.
    ALTER TABLE pending_commits ADD COLUMN is_external INTEGER NOT NULL DEFAULT 0;
    -- The devices that were told that this device is not in a group.
    CREATE TABLE told_strangers (
        group_id BLOB NOT NULL,
        device   TEXT NOT NULL,
        told_at  INTEGER NOT NULL,
        PRIMARY KEY (group_id, device)
    ) STRICT, WITHOUT ROWID;
    -- The devices that this device is about to bring into a group: new ones, and those that were installed anew.
    CREATE TABLE arriving_devices (
        group_id BLOB NOT NULL,
        device   TEXT NOT NULL,
        PRIMARY KEY (group_id, device)
    ) STRICT, WITHOUT ROWID;
    -- Whether members bring new devices of the group's users in by themselves.
    ALTER TABLE device_groups ADD COLUMN admits_devices INTEGER NOT NULL DEFAULT 1;
    -- Whether the stored state is that after an external Commit that the server has not accepted.
    ALTER TABLE device_groups ADD COLUMN is_provisional INTEGER NOT NULL DEFAULT 0;
    -- Whether a message claimed to be of a later epoch. Anybody can send such a message, so the server is asked.
    ALTER TABLE device_groups ADD COLUMN may_be_behind INTEGER NOT NULL DEFAULT 0;
    ",
    "
    -- Whether this device is to look for groups of its user that it is not in: it was registered.
    ALTER TABLE device_identity ADD COLUMN looks_for_groups INTEGER NOT NULL DEFAULT 0;
    -- The groups whose members this device is about to ask to be brought in.
    CREATE TABLE wanted_groups (
        group_id BLOB    NOT NULL PRIMARY KEY,
        -- Whether it asks only if the server lists it among the members.
        if_listed INTEGER NOT NULL,
        -- Whether it asks only after a refresh: an invitation was for a KeyPackage whose keys are gone.
        is_late   INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    -- The groups that this device has deleted while it was a member. It does not ask to be brought back into them.
    CREATE TABLE left_groups (
        group_id BLOB NOT NULL PRIMARY KEY
    ) STRICT, WITHOUT ROWID;
    -- Whether the device itself asked to be brought in, so that it does not have the keys of its leaf.
    ALTER TABLE arriving_devices ADD COLUMN has_asked INTEGER NOT NULL DEFAULT 0;
    -- The changes of groups' members, as this device saw them, in JSON.
    CREATE TABLE membership_changes (
        id       INTEGER NOT NULL PRIMARY KEY,
        group_id BLOB    NOT NULL,
        change   TEXT    NOT NULL
    ) STRICT;
    CREATE INDEX membership_changes_group ON membership_changes (group_id, id);
    ",
    "
    -- The server's transparency logs, the newest last, each with the key that this device believes.
    CREATE TABLE logs (
        id         INTEGER NOT NULL PRIMARY KEY,
        origin     TEXT    NOT NULL UNIQUE,
        key        TEXT    NOT NULL,
        -- The note by which the key of the log before names this key: NULL for a key that this device first saw, or was given.
        key_note   TEXT,
        -- The largest checkpoint that was verified.
        checkpoint TEXT,
        seen_at    INTEGER NOT NULL
    ) STRICT;
    -- The KeyPackages that the server has handed out to this device, to be found in the log.
    CREATE TABLE hand_outs (
        id             INTEGER NOT NULL PRIMARY KEY,
        reservation_id TEXT    NOT NULL UNIQUE,
        package        BLOB    NOT NULL,
        key_package    BLOB    NOT NULL,
        -- What the log has to have of it, in JSON.
        hand_out       TEXT    NOT NULL,
        state          TEXT    NOT NULL,
        -- The last row when the device asked for this one: what is in later rows may have happened after it.
        asked_after    INTEGER NOT NULL,
        keep_until     INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX hand_outs_package ON hand_outs (package);
    CREATE INDEX hand_outs_state ON hand_outs (state, id);
    -- This device's own KeyPackages by the names that they have in the log, also after they were used.
    CREATE TABLE own_packages (
        id            INTEGER NOT NULL PRIMARY KEY,
        ref           BLOB    NOT NULL UNIQUE,
        package       BLOB    NOT NULL,
        not_after     INTEGER NOT NULL,
        -- The status with which it was last compared with the log.
        ended         TEXT,
        -- The device that spent it and the group, as the server says.
        spent_by      TEXT,
        spent_for     BLOB,
        -- The sender and the group of the Welcome that used it.
        welcome_from  TEXT,
        welcome_group BLOB,
        state         TEXT    NOT NULL DEFAULT 'idle'
    ) STRICT;
    CREATE INDEX own_packages_state ON own_packages (state, id);
    -- The promises that the server has broken.
    CREATE TABLE findings (
        id           INTEGER NOT NULL PRIMARY KEY,
        found_at     INTEGER NOT NULL,
        problem      TEXT    NOT NULL,
        is_proven    INTEGER NOT NULL,
        -- The file with the evidence or the report, in the data directory.
        file         TEXT    NOT NULL,
        is_dismissed INTEGER NOT NULL DEFAULT 0
    ) STRICT;
    -- When this device last compared the log with what it knows.
    ALTER TABLE device_identity ADD COLUMN log_checked_at INTEGER;
    ",
    "
    -- The epoch in which it was said whether members bring new devices in; NULL if nobody has said it.
    ALTER TABLE device_groups ADD COLUMN admits_since INTEGER;
    UPDATE device_groups SET admits_since = 0 WHERE NOT admits_devices;
    -- The devices that were removed from a group, or left it, and that nobody has added since.
    CREATE TABLE removed_devices (
        id       INTEGER NOT NULL PRIMARY KEY,
        group_id BLOB    NOT NULL,
        device   TEXT    NOT NULL,
        UNIQUE (group_id, device)
    ) STRICT;
    INSERT INTO removed_devices (group_id, device)
    SELECT DISTINCT changes.group_id, gone.value FROM membership_changes AS changes, json_each(change, '$.removed') AS gone
    WHERE NOT EXISTS (
        SELECT 1 FROM membership_changes AS later, json_each(later.change, '$.added') AS back
        WHERE later.group_id = changes.group_id AND later.id > changes.id AND back.value = gone.value
    ) AND NOT EXISTS (
        SELECT 1 FROM membership_changes AS later, json_each(later.change, '$.updated') AS back
        WHERE later.group_id = changes.group_id AND later.id > changes.id AND back.value = gone.value
    );
    -- The epoch of the group for which this device last asked to be brought back.
    ALTER TABLE device_groups ADD COLUMN asked_epoch INTEGER;
    -- Whether the device has shown that it has the signature key of its leaf.
    ALTER TABLE arriving_devices ADD COLUMN has_key INTEGER NOT NULL DEFAULT 0;
    ",
];

/// Brings our tables up to date, all missing migrations in one transaction.
pub(super) fn migrate(connection: &mut Connection) -> Result<()> {
    let migrations = Migrations::new(MIGRATIONS.map(M::up).to_vec());
    migrations.to_latest(connection).map_err(|error| match error {
        MigrationError::MigrationDefinition(MigrationDefinitionError::DatabaseTooFarAhead) => {
            let found = migrations.current_version(connection).map_or(0, usize::from);
            let number = |version| i64::try_from(version).unwrap_or(i64::MAX);
            Error::NewerStore { found: number(found), known: number(MIGRATIONS.len()) }
        }
        MigrationError::RusqliteError { err, .. } => Error::storage("bring the tables up to date")(err),
        other => Error::Migration(Box::new(other)),
    })
}

#[cfg(test)]
mod tests;
