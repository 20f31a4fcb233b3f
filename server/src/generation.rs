//! A file beside an SQLite database that records its generation. If the database is behind its file, it was restored.

use std::{
    fs::{self, OpenOptions},
    io::{ErrorKind, Write},
    path::PathBuf,
};

use anyhow::{Context, anyhow};

use crate::config::Config;

/// The file. It is written after the database, so its generation is never ahead of the database that it belongs to.
#[derive(Clone, Debug)]
pub(crate) struct GenerationFile(PathBuf);

impl GenerationFile {
    /// Returns the file of the configured database; `None` if the database itself can tell that it was restored.
    pub(crate) fn of(config: &Config) -> Option<Self> {
        config.database_url.expose().strip_prefix("sqlite://").map(|path| Self(format!("{path}.generation").into()))
    }

    /// Returns the recorded generation; `None` if there is no file.
    pub(crate) fn read(&self) -> anyhow::Result<Option<i64>> {
        let path = self.0.display();
        let text = match fs::read_to_string(&self.0) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            text => text.with_context(|| format!("cannot read the generation file {path}"))?,
        };
        let number = text.trim().parse().map_err(|error| {
            anyhow!(
                "the generation file {path} holds no number ({error}): if the database beside it was not restored from \
                 a backup, run the server once with KEYPOOL_ON_RESTORE=trust and without this file"
            )
        });
        number.map(Some)
    }

    /// Replaces the file atomically, so that a crash leaves either the old or the new generation.
    pub(crate) fn write(&self, generation: i64) -> anyhow::Result<()> {
        let mut new = self.0.clone().into_os_string();
        new.push(".new");
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let written = options.open(&new).and_then(|mut file| {
            writeln!(file, "{generation}")?;
            file.sync_all()?;
            fs::rename(&new, &self.0)
        });
        written.with_context(|| format!("cannot write the generation file {}", self.0.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_keeps_its_number_and_nothing_else_is_one() {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", directory.path().join("k.db").display());
        let file = GenerationFile::of(&Config { database_url: url.into(), ..Config::default() }).unwrap();
        assert_eq!(file.read().unwrap(), None);
        file.write(7).unwrap();
        assert_eq!(file.read().unwrap(), Some(7));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        fs::write(directory.path().join("k.db.generation"), "x").unwrap();
        assert!(file.read().unwrap_err().to_string().contains("k.db.generation holds no number"));
    }

    #[test]
    fn postgresql_needs_none() {
        let config = Config { database_url: "postgres://localhost/keypool".to_owned().into(), ..Config::default() };
        assert!(GenerationFile::of(&config).is_none());
    }
}
