//! The lock beside an SQLite file, so that one server alone uses it.

use std::{
    fs::{self, File, TryLockError},
    path::PathBuf,
};

use anyhow::{Context, bail};

use super::sqlite;
use crate::config::DatabaseUrl;

/// The lock of a server on its SQLite file. It ends with this value, and with the process however that ends: the file
/// beside the database may stay.
///
/// A second server would not wake the requests that wait at the first one, and both would write in turns. Commands that
/// run one transaction, such as `enrol`, need no lock.
#[derive(Debug)]
pub struct ServerLock {
    _file: File,
}

impl ServerLock {
    /// Takes the lock of this database. Returns `None` on PostgreSQL, which any number of servers may share.
    ///
    /// # Errors
    /// When another server has the lock, or the file cannot be made or locked.
    pub fn take(url: &DatabaseUrl) -> anyhow::Result<Option<Self>> {
        let Some(path) = url.expose().strip_prefix("sqlite://") else { return Ok(None) };
        Self::of_file(path).with_context(|| format!("cannot open {url}")).map(Some)
    }

    fn of_file(path: &str) -> anyhow::Result<Self> {
        sqlite::make_private(path)?;
        let lock = beside(path)?;
        let file = sqlite::open_private(&lock).with_context(|| sqlite::rights(path))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => bail!(
                "another server uses this file: stop that server first. Several servers need PostgreSQL \
                 (KEYPOOL_DATABASE_URL=postgres://…)"
            ),
            Err(TryLockError::Error(error)) => {
                Err(error).with_context(|| format!("the file system cannot lock {}", lock.display()))
            }
        }
    }
}

/// The lock file. Servers that reach the database by different paths or symbolic links have the same one.
fn beside(path: &str) -> anyhow::Result<PathBuf> {
    let found = fs::canonicalize(path).with_context(|| format!("cannot find the file {path}"))?;
    let mut name = found.into_os_string();
    name.push(".lock");
    Ok(name.into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn every_name_of_a_file_has_the_same_lock() {
        let directory = tempfile::tempdir().unwrap();
        let (path, link) = (directory.path().join("k.db"), directory.path().join("link.db"));
        symlink(&path, &link).unwrap();
        symlink(directory.path(), directory.path().join("volume")).unwrap();
        let take = |name: &str| {
            let url = format!("sqlite://{}", directory.path().join(name).display());
            ServerLock::take(&url.into()).map(Option::unwrap)
        };
        // The link is there before the file.
        let lock = take("link.db").unwrap();
        for name in ["k.db", "link.db", "volume/k.db", "./k.db"] {
            let refused = format!("{:#}", take(name).unwrap_err());
            assert!(
                refused.contains(&format!("{name}: another server uses")) && refused.contains("postgres"),
                "{refused}"
            );
        }
        let other = take("other.db").unwrap();
        drop(lock);
        drop((take("k.db").unwrap(), other));
    }

    #[test]
    fn postgresql_needs_none() {
        assert!(ServerLock::take(&"postgres://localhost/keypool".to_owned().into()).unwrap().is_none());
    }
}
