//! The files of this repository.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The repository's directory.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Every text below a directory that has one of these extensions, with its path. Hidden directories, and those of cargo and
/// npm, are left out.
pub fn texts(directory: &Path, extensions: &[&str]) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy();
        if path.is_dir() {
            if !name.starts_with('.') && !["target", "node_modules"].contains(&&*name) {
                found.extend(texts(&path, extensions));
            }
        } else if path.extension().is_some_and(|extension| extensions.iter().any(|one| extension == *one)) {
            found.push((path.display().to_string(), fs::read_to_string(path).unwrap()));
        }
    }
    found
}
