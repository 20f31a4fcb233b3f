//! Runs the program, and writes logs to directories.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use keypool_transparency::{
    leaf::Leaf,
    note::Note,
    package::Tag,
    tile::{TileId, TileKind, bundle_prefix},
    tree::TileStore,
};
use tempfile::TempDir;

use crate::support::Log;

/// A directory with the files of a test.
pub struct Files {
    directory: TempDir,
}

/// What the program answered.
pub struct Answer {
    pub code: i32,
    pub json: serde_json::Value,
    pub errors: String,
}

impl Answer {
    pub fn of(output: &Output) -> Self {
        let text = String::from_utf8_lossy(&output.stdout);
        let json = serde_json::from_str(text.lines().last().unwrap_or_default()).unwrap_or_default();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        Self { code: output.status.code().unwrap_or(-1), json, errors }
    }

    /// Checks exit code and result, and that the reason has some words.
    #[track_caller]
    pub fn is(&self, code: i32, result: &str, words: &str) -> &Self {
        let (json, errors) = (&self.json, &self.errors);
        assert_eq!((self.code, json["result"].as_str().unwrap_or_default()), (code, result), "{json} {errors}");
        let reason = json["reason"].as_str().unwrap_or_default();
        assert!(reason.contains(words), "{reason}");
        self
    }
}

impl Files {
    pub fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_keypool-verify"));
        command.args(arguments).current_dir(self.directory.path());
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Answer {
        Answer::of(&self.command(arguments).arg("--json").output().unwrap())
    }

    /// Audits the log in the directory `log`.
    pub fn audit(&self, log: &Log) -> Answer {
        let key = log.key.verifier().to_string();
        self.run(&["audit", "--log", "log", "--state", "state", "--vkey", &key])
    }
}

/// Writes what a server serves of a log with this checkpoint.
pub fn write_log(directory: &Path, log: &Log, checkpoint: &Note) {
    write_log_of(directory, log, log.size(), checkpoint);
}

/// The same with a size that the log's list of entries does not show.
pub fn write_log_of(directory: &Path, log: &Log, size: u64, checkpoint: &Note) {
    write_tiles(directory, log, size);
    fs::write(directory.join("checkpoint"), checkpoint.to_string()).unwrap();
}

fn write_tiles(directory: &Path, log: &Log, size: u64) {
    let kinds = [TileKind::Entries].into_iter().chain((0..8).map(TileKind::Hashes));
    for kind in kinds {
        for tile in (0..).map_while(|index| TileId::in_tree(kind, index, size)) {
            let bytes = log.store.read(&tile).unwrap().unwrap();
            let bytes = match kind {
                TileKind::Entries => bundle_prefix(&bytes, tile.width).unwrap(),
                TileKind::Hashes(_) => &bytes[..usize::from(tile.width) * 32],
            };
            let path = directory.join(tile.to_string());
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
    }
}

/// A leaf with a tag of its own.
pub fn leaf(tag: u64) -> Vec<u8> {
    let tag = keypool_transparency::merkle::leaf_hash(&tag.to_be_bytes());
    Leaf::new(&Tag(tag), &[0x42; 32]).as_bytes().to_vec()
}

/// Appends leaves with tags of their own.
pub fn append(log: &mut Log, tags: std::ops::Range<u64>) {
    log.append(&tags.map(leaf).collect::<Vec<_>>());
}
