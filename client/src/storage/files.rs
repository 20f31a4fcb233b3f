//! The files of a data directory: created, locked, and readable by their owner only.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read as _},
    path::Path,
};

use crate::error::{Error, Result};

/// The name of the database in the data directory.
pub(super) const FILE: &str = "device.db";

/// The name of a database that is not complete yet.
pub(super) const UNFINISHED: &str = "device.db.new";

/// The lock on a data directory. Dropping it unlocks the directory.
#[derive(Debug)]
pub(super) struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing the file is not enough: a child process that another thread is starting has it open, too, until it
        // executes its program.
        if let Err(error) = self.0.unlock() {
            tracing::debug!(%error, "could not unlock the data directory; closing the file unlocks it");
        }
    }
}

pub(super) fn make_directory(directory: &Path) -> Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(directory).map_err(file_error("create the directory", directory))
}

pub(super) fn lock(directory: &Path) -> Result<Lock> {
    let path = directory.join("keypool.lock");
    let file = private_file(&path)?;
    match file.try_lock() {
        Ok(()) => Ok(Lock(file)),
        Err(TryLockError::WouldBlock) => Err(Error::InUse(directory.to_owned())),
        Err(TryLockError::Error(source)) => Err(file_error("lock", &path)(source)),
    }
}

/// Opens a file that only its owner may read, and creates it if it does not exist. Call it before SQLite opens the
/// file, so that other users can never read it; SQLite gives its side files the same mode.
pub(super) fn private_file(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.open(path).map_err(file_error("open", path))?;
    #[cfg(unix)]
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .map_err(file_error("restrict the permissions of", path))?;
    Ok(file)
}

/// Removes what a crash left of a database that was not complete yet.
pub(super) fn remove_unfinished(directory: &Path) -> Result<()> {
    for suffix in ["", "-journal", "-wal", "-shm"] {
        let left_over = directory.join(format!("{UNFINISHED}{suffix}"));
        if left_over.exists() {
            overwrite(&left_over)?;
            fs::remove_file(&left_over).map_err(file_error("remove", &left_over))?;
        }
    }
    Ok(())
}

/// Overwrites a file, since removing it leaves its bytes on the disk. A disk that writes elsewhere keeps them all the same.
fn overwrite(path: &Path) -> Result<()> {
    let file = OpenOptions::new().write(true).open(path).map_err(file_error("open", path))?;
    overwrite_open(&file).map_err(file_error("overwrite", path))
}

fn overwrite_open(mut file: &File) -> io::Result<()> {
    let length = file.metadata()?.len();
    io::copy(&mut io::repeat(0).take(length), &mut file)?;
    file.sync_all()
}

/// Puts a complete file in the place of another one, so that a crash leaves one of the two whole, and overwrites the old
/// one's bytes.
pub(super) fn replace(path: &Path, new: &Path) -> Result<()> {
    let old = OpenOptions::new().write(true).open(path).map_err(file_error("open", path))?;
    File::open(new).and_then(|file| file.sync_all()).map_err(file_error("write", new))?;
    fs::rename(new, path).map_err(file_error("put the database at", path))?;
    #[cfg(unix)]
    if let Some(directory) = path.parent() {
        File::open(directory).and_then(|directory| directory.sync_all()).map_err(file_error("write", directory))?;
    }
    if let Err(error) = overwrite_open(&old) {
        tracing::warn!(%error, "could not overwrite the former content of the database");
    }
    Ok(())
}

/// Takes the side files of a database away from other users: one that somebody else's backup put back may have any mode.
pub(super) fn private_side_files(database: &Path) -> Result<()> {
    for suffix in ["-wal", "-shm"] {
        let mut path = database.as_os_str().to_owned();
        path.push(suffix);
        if Path::new(&path).exists() {
            private_file(path.as_ref())?;
        }
    }
    Ok(())
}

/// The beginning of a file: what kind of database it is.
pub(super) enum Beginning {
    Nothing,
    Plain,
    Other,
}

pub(super) fn beginning(path: &Path) -> Result<Beginning> {
    let mut bytes = Vec::new();
    match File::open(path) {
        Ok(file) => file.take(16).read_to_end(&mut bytes).map_err(file_error("read", path))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(file_error("open", path)(error)),
    };
    Ok(match bytes.as_slice() {
        [] => Beginning::Nothing,
        b"SQLite format 3\0" => Beginning::Plain,
        _ => Beginning::Other,
    })
}

pub(super) fn file_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { doing, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_process_that_is_just_started_does_not_hold_the_lock() {
        let directory = tempfile::tempdir().unwrap();
        let held = lock(directory.path()).unwrap();
        // A child process has such a descriptor between fork and exec.
        let _inherited = held.0.try_clone().unwrap();
        drop(held);
        lock(directory.path()).unwrap();
    }
}
