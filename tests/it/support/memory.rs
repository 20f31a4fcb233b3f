//! The directory of a test's databases: in memory, if there is room.

use std::{
    env,
    path::PathBuf,
    process::{Command, Stdio},
    sync::LazyLock,
};

use tempfile::TempDir;

/// A file system in memory, as Linux has it. A disk's takes five times as long to make the 300 files of a database of
/// PostgreSQL.
const MEMORY: &str = "/dev/shm";

/// The MiB that have to be free there: the databases of all tests that run at once are smaller.
const ROOM: u64 = 2_048;

/// An empty directory for databases, which is deleted when it is dropped.
pub fn data_directory() -> TempDir {
    static BASE: LazyLock<PathBuf> =
        LazyLock::new(|| if room(MEMORY) >= ROOM { MEMORY.into() } else { env::temp_dir() });
    tempfile::Builder::new().prefix("keypool-").tempdir_in(&*BASE).unwrap()
}

/// How many MiB are free in a file system; none where there is no such directory.
fn room(directory: &str) -> u64 {
    let free = Command::new("df").args(["--output=avail", "--block-size=1M", directory]).stderr(Stdio::null()).output();
    let text = free.map(|free| String::from_utf8_lossy(&free.stdout).into_owned()).unwrap_or_default();
    text.lines().last().and_then(|line| line.trim().parse().ok()).unwrap_or_default()
}
