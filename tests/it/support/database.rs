use tempfile::TempDir;

use super::postgres;

/// Which database a test runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Database {
    Postgres,
    Sqlite,
}

/// An empty database of one test's own.
#[derive(Debug)]
pub struct Place {
    pub url: String,
    _directory: Option<TempDir>,
}

impl Database {
    pub fn fresh(self) -> Place {
        match self {
            Self::Postgres => Place { url: postgres::fresh_database(), _directory: None },
            Self::Sqlite => {
                let directory = tempfile::tempdir().unwrap();
                let url = format!("sqlite://{}", directory.path().join("keypool.db").display());
                Place { url, _directory: Some(directory) }
            }
        }
    }
}
