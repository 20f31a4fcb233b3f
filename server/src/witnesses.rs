//! Raises the database's generation, by which a backup that is put back differs from the database that was served.

use std::sync::{Mutex, PoisonError};

use crate::{
    config::Config,
    generation::GenerationFile,
    store::{Store, StoreError},
};

/// The generation in the database, and in a file for a database that cannot itself tell that it was restored.
pub(crate) struct Witnesses {
    store: Store,
    file: Option<GenerationFile>,
    /// One raise at a time: else an older number could end up in the file.
    turn: Mutex<()>,
}

impl Witnesses {
    pub(crate) fn new(store: Store, config: &Config) -> Self {
        Self { store, file: GenerationFile::of(config), turn: Mutex::default() }
    }

    /// Whether only the file tells that the database was restored.
    pub(crate) fn has_file(&self) -> bool {
        self.file.is_some()
    }

    /// Compares the database with its generation file. A database that was restored from a backup is fenced, unless the
    /// operator has it trusted. Blocks.
    ///
    /// # Errors
    /// When the database or its generation file cannot be read or written.
    pub(crate) fn resume(&self) -> anyhow::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        file.write(self.store.resume(file.read()?)?)
    }

    /// Raises the generation, so that a backup made before differs from the later database. Blocks.
    ///
    /// # Errors
    /// When the database fails.
    pub(crate) fn renew(&self) -> Result<(), StoreError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let generation = self.store.renew_witnesses()?;
        if let Some(file) = &self.file {
            file.write(generation).unwrap_or_else(|error| {
                tracing::warn!("{error:#}: a restored backup would not be noticed");
            });
        }
        Ok(())
    }
}
