//! The file with the key from which the keys of a server's logs are made.

use std::{
    fs,
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, anyhow};
use keypool_transparency::{note::SignerKey, origin::Origin};
use rand::{TryRng, rngs::SysRng};

use crate::{config::Config, store::StoreError};

/// Where the configured key file is; `None` if there is none. An SQLite database has one beside it.
pub(super) fn path(config: &Config) -> Option<PathBuf> {
    let beside = || config.database_url.expose().strip_prefix("sqlite://").map(|path| format!("{path}.log-key").into());
    config.log_key.clone().or_else(beside)
}

/// The key.
pub(super) struct KeyFile([u8; 32]);

impl KeyFile {
    /// Reads the file; `None` if it does not exist.
    pub(super) fn read(path: &Path) -> anyhow::Result<Option<Self>> {
        let shown = path.display();
        let text = match fs::read_to_string(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            text => text.with_context(|| format!("cannot read the log's key file {shown}"))?,
        };
        let mut key = [0; 32];
        hex::decode_to_slice(text.trim_end(), &mut key).map_err(|_| {
            anyhow!("the log's key file {shown} has not 64 hexadecimal digits: `openssl rand -hex 32` makes such a key")
        })?;
        Ok(Some(Self(key)))
    }

    /// Makes the file with a new key. If another server makes it at the same time, its key is used.
    pub(super) fn make(path: &Path) -> anyhow::Result<Self> {
        let mut key = [0; 32];
        SysRng.try_fill_bytes(&mut key).context("the operating system gives no random bytes")?;
        let shown = path.display();
        let directory = path.parent().filter(|directory| *directory != Path::new("")).unwrap_or(Path::new("."));
        let made = tempfile_in(directory, &key).and_then(|new| {
            // A link fails where the file exists, and the file is never half written.
            match fs::hard_link(&new, path) {
                Ok(()) => fs::remove_file(&new).map(|()| true),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => fs::remove_file(&new).map(|()| false),
                // Some file systems have no links.
                Err(_) => fs::rename(&new, path).map(|()| true),
            }
        });
        if made.with_context(|| format!("cannot make the log's key file {shown}"))? {
            tracing::info!(file = %shown, "made the key of the transparency log: keep a copy of this file in a safe place");
            return Ok(Self(key));
        }
        Self::read(path)?.with_context(|| format!("the log's key file {shown} was removed just now"))
    }

    /// The key that signs a log.
    pub(super) fn signer(&self, origin: &Origin) -> Result<SignerKey, StoreError> {
        origin.key(&self.0).map_err(StoreError::fatal)
    }
}

/// Writes a key to a new file that its owner alone can read.
fn tempfile_in(directory: &Path, key: &[u8; 32]) -> std::io::Result<PathBuf> {
    // Servers in containers have the same process number, and may start at once on one volume.
    let mut suffix = [0; 8];
    SysRng.try_fill_bytes(&mut suffix).map_err(std::io::Error::other)?;
    let path = directory.join(format!(".keypool-log-key-{}", hex::encode(suffix)));
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&path)?;
    writeln!(file, "{}", hex::encode(key))?;
    file.sync_all()?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_made_once_and_read_as_it_was_made() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        assert!(KeyFile::read(&path).unwrap().is_none());
        let made = KeyFile::make(&path).unwrap();
        assert_eq!(KeyFile::read(&path).unwrap().unwrap().0, made.0);
        assert_eq!(KeyFile::make(&path).unwrap().0, made.0, "another server has made it");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        fs::write(&path, "ab").unwrap();
        let error = KeyFile::read(&path).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("64 hexadecimal digits"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn only_its_owner_can_read_it() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        KeyFile::make(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
