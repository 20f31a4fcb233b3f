//! Our tables, and how a file of an older version is brought up to date.

use rusqlite::Connection;

use crate::error::{Error, Result};

/// One entry a version; `PRAGMA user_version` counts those that ran. What is written here is never changed.
pub(super) const MIGRATIONS: [&str; 6] = [
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
    -- Until when the keys of a KeyPackage that failed are kept: NULL where nobody can have it.
    ALTER TABLE keypackage_pool_metadata ADD COLUMN keep_until INTEGER;
    -- Of a signature key that was rotated away: to be withdrawn from the server.
    ALTER TABLE keypackage_pool_metadata ADD COLUMN superseded INTEGER NOT NULL DEFAULT 0;
    CREATE INDEX keypackage_pool_metadata_status ON keypackage_pool_metadata (status);
    CREATE INDEX keypackage_pool_metadata_expiry ON keypackage_pool_metadata (not_after);
    CREATE INDEX keypackage_pool_metadata_creation ON keypackage_pool_metadata (created_at);

    -- The Idempotency-Key of the registration, until its token is there.
    ALTER TABLE device_identity ADD COLUMN registration_key TEXT;

    -- The ciphersuites that this device has a pool of, each with the public signature key that it uses now.
    CREATE TABLE device_ciphersuites (
        ciphersuite   INTEGER NOT NULL PRIMARY KEY,
        signature_key BLOB    NOT NULL
    ) STRICT;
    INSERT INTO device_ciphersuites (ciphersuite, signature_key) SELECT 1, signature_key FROM device_identity;
    ALTER TABLE device_identity DROP COLUMN signature_key;

    -- When KeyPackages that were not generated here were found in the pool on the server.
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
    -- Commits that were sent, or are about to be, and not answered: a group has one at most.
    CREATE TABLE pending_commits (
        group_id BLOB NOT NULL PRIMARY KEY,
        request  TEXT NOT NULL
    ) STRICT;
    -- What came by the queue and was not dealt with yet, by its id there.
    CREATE TABLE inbox (
        id       INTEGER NOT NULL PRIMARY KEY,
        incoming TEXT    NOT NULL
    ) STRICT;
    ",
    "
    -- When the server's database was restored from a backup, as far as this device has heeded it.
    ALTER TABLE device_identity ADD COLUMN fenced_at INTEGER;
    ",
    "
    -- The signature keys that members of groups were accepted with, by the credential in their leaves.
    CREATE TABLE seen_signature_keys (
        identity      BLOB    NOT NULL,
        ciphersuite   INTEGER NOT NULL,
        signature_key BLOB    NOT NULL,
        seen_at       INTEGER NOT NULL,
        PRIMARY KEY (identity, ciphersuite, signature_key)
    ) STRICT, WITHOUT ROWID;
    -- Who sent a Commit that was refused: since then, the group's epoch on the server is ahead of the one here.
    ALTER TABLE device_groups ADD COLUMN refused_commit_by TEXT;
    -- The group that has taken the place of this one, which is read-only since.
    ALTER TABLE device_groups ADD COLUMN replaced_by BLOB;
    -- The signature key that takes the place of the other one as soon as the server has accepted it.
    ALTER TABLE device_ciphersuites ADD COLUMN next_signature_key BLOB;
    -- The devices of the user, as the server last had them, in JSON, and the version of that.
    ALTER TABLE device_identity ADD COLUMN own_devices TEXT;
    ALTER TABLE device_identity ADD COLUMN own_devices_version INTEGER;
    ",
    "
    -- What a Commit of an epoch shows for being a member's: a server that was restored asks for that of an epoch that is over.
    CREATE TABLE commit_proofs (
        group_id BLOB    NOT NULL,
        epoch    INTEGER NOT NULL,
        proof    BLOB    NOT NULL,
        PRIMARY KEY (group_id, epoch)
    ) STRICT, WITHOUT ROWID;
    ",
];

pub(super) fn migrate(connection: &Connection) -> Result<()> {
    let known = i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX);
    let found: i64 = connection
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(Error::storage("read the version"))?;
    let done = usize::try_from(found)
        .ok()
        .filter(|done| *done <= MIGRATIONS.len())
        .ok_or(Error::NewerStore { found, known })?;
    for (version, statements) in (1_i64..).zip(MIGRATIONS).skip(done) {
        let run = || {
            let transaction = connection.unchecked_transaction()?;
            connection.execute_batch(statements)?;
            connection.pragma_update(None, "user_version", version)?;
            transaction.commit()
        };
        run().map_err(Error::storage("bring the tables up to date"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rusqlite::params;

    use super::*;
    use crate::storage::LocalStore;

    /// A file as version 1 left it keeps its device and its KeyPackages.
    #[test]
    fn a_file_of_an_older_version_is_brought_up_to_date() {
        let directory = tempfile::tempdir().unwrap();
        let old = Connection::open(directory.path().join("keypool.db")).unwrap();
        old.execute_batch(MIGRATIONS[0]).unwrap();
        old.pragma_update(None, "user_version", 1).unwrap();
        old.execute(
            "INSERT INTO device_identity VALUES (1, 'http://localhost/', 'alice', 'laptop', 'token', x'01')",
            [],
        )
        .unwrap();
        old.execute("INSERT INTO keypackage_pool_metadata VALUES (?1, 'uploaded', 1, 2, 3, 1, 0)", params![[7_u8; 32]])
            .unwrap();
        drop(old);
        let store = LocalStore::open(directory.path()).unwrap();
        let row = store.get_metadata_by_status(crate::storage::KeyPackageStatus::Uploaded).unwrap().remove(0);
        assert_eq!((row.created_at.as_second(), row.not_after.as_second(), row.superseded), (1, 3, false));
        let identity = store.identity().unwrap().unwrap();
        assert_eq!((identity.user.as_str(), identity.signature_keys), ("alice", vec![(1, vec![1])]));
    }

    #[test]
    fn a_file_of_a_newer_program_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        drop(LocalStore::open(directory.path()).unwrap());
        let newer = Connection::open(directory.path().join("keypool.db")).unwrap();
        newer.pragma_update(None, "user_version", 99).unwrap();
        drop(newer);
        let refused = LocalStore::open(directory.path()).unwrap_err();
        assert!(matches!(refused, Error::NewerStore { found: 99, .. }), "{refused}");
    }
}
