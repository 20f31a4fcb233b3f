use std::{fs, path::PathBuf, sync::LazyLock};

use diesel::{
    Connection, PgConnection, QueryResult, QueryableByName, RunQueryDsl, SqliteConnection,
    connection::SimpleConnection, sql_types::BigInt,
};
use diesel_migrations::{FileBasedMigrations, MigrationHarness as _};
use tempfile::{NamedTempFile, TempDir};

use super::{
    compose, data_directory,
    postgres::{self, program, run},
    repository,
};

/// Which database a test runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Database {
    Postgres,
    Sqlite,
}

/// Which database a test runs on that needs nothing but HTTP: so it runs against containers as well.
#[derive(Clone, Copy, Debug)]
pub enum Anywhere {
    Postgres,
    Sqlite,
}

/// The place of a test's server.
#[derive(Clone, Copy, Debug)]
pub enum Where {
    /// Here, whatever the other tests run against.
    Here(Database),
    /// In containers, when the tests run against them.
    Anywhere(Database),
}

impl From<Database> for Where {
    fn from(database: Database) -> Self {
        Self::Here(database)
    }
}

impl From<Anywhere> for Where {
    fn from(anywhere: Anywhere) -> Self {
        Self::Anywhere(match anywhere {
            Anywhere::Postgres => Database::Postgres,
            Anywhere::Sqlite => Database::Sqlite,
        })
    }
}

impl Where {
    /// The database of the server here, or `Err` with the one of the containers.
    pub fn here(self) -> Result<Database, Database> {
        match self {
            Self::Anywhere(database) if compose::is_asked_for() => Err(database),
            Self::Here(database) | Self::Anywhere(database) => Ok(database),
        }
    }
}

/// A database of one test's own, which ends with it.
#[derive(Debug)]
pub struct Place {
    pub url: String,
    _keeps: Kept,
}

/// Deletes a database when it is dropped.
#[derive(Debug)]
enum Kept {
    Elsewhere,
    File { _directory: TempDir },
    Shared { _database: postgres::Shared },
}

impl Place {
    /// A database that something else keeps.
    pub fn at(url: String) -> Self {
        Self { url, _keeps: Kept::Elsewhere }
    }

    fn shared(database: postgres::Shared) -> Self {
        Self { url: database.url(), _keeps: Kept::Shared { _database: database } }
    }
}

/// The key of the transparency logs of all PostgreSQL databases here.
static LOG_KEY: LazyLock<NamedTempFile> = LazyLock::new(|| {
    let file = NamedTempFile::new().unwrap();
    fs::write(file.path(), "5a".repeat(32)).unwrap();
    file
});

impl Place {
    /// The key file of its transparency log, where it has to be configured: an SQLite database has one beside it.
    pub fn log_key(&self) -> Option<PathBuf> {
        (!self.url.starts_with("sqlite://")).then(|| LOG_KEY.path().to_owned())
    }

    /// A backup, as an operator makes it of a database that is in use.
    pub fn backup(&self) -> NamedTempFile {
        let file = NamedTempFile::new().unwrap();
        if self.url.starts_with("sqlite://") {
            self.open().run(&format!("VACUUM INTO '{}'", file.path().display()));
        } else {
            run(program("pg_dump").args(["--format=custom", "--dbname", &self.url, "--file"]).arg(file.path()));
        }
        file
    }

    /// The database is lost, and comes back from its backup.
    pub fn restored(self, backup: &NamedTempFile) -> Self {
        let Some(path) = self.url.strip_prefix("sqlite://") else {
            let new = Database::Postgres.fresh();
            run(program("pg_restore").args(["--dbname", &new.url]).arg(backup.path()));
            return new;
        };
        for leftover in [format!("{path}-wal"), format!("{path}-shm")] {
            let _ = fs::remove_file(leftover);
        }
        fs::copy(backup.path(), path).unwrap();
        self
    }
}

impl Database {
    /// An empty database, which its first server migrates.
    pub fn fresh(self) -> Place {
        match self {
            Self::Postgres => Place::shared(postgres::Shared::fresh()),
            Self::Sqlite => {
                let directory = data_directory();
                let url = format!("sqlite://{}", directory.path().join("keypool.db").display());
                Place { url, _keeps: Kept::File { _directory: directory } }
            }
        }
    }

    /// A database that is migrated already, and that no server has seen: to migrate it takes longer than most tests.
    pub fn migrated(self) -> Place {
        match self {
            Self::Postgres => Place::shared(postgres::Shared::migrated()),
            Self::Sqlite => {
                let place = self.fresh();
                fs::write(place.url.trim_start_matches("sqlite://"), &*MIGRATED).unwrap();
                place
            }
        }
    }
}

/// An SQLite file with the tables of the newest version.
static MIGRATED: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let place = Database::Sqlite.fresh();
    let path = place.url.trim_start_matches("sqlite://");
    SqliteConnection::establish(path).unwrap().run_pending_migrations(migrations("sqlite")).unwrap();
    fs::read(path).unwrap()
});

/// The migrations of a database, by the name of their folder.
pub fn migrations(folder: &str) -> FileBasedMigrations {
    FileBasedMigrations::from_path(repository().join("migrations").join(folder)).unwrap()
}

/// A connection of a test's own, behind the servers' backs.
pub enum Raw {
    Postgres(PgConnection),
    Sqlite(SqliteConnection),
}

#[derive(QueryableByName)]
struct Number {
    #[diesel(sql_type = BigInt)]
    n: i64,
}

impl Place {
    pub fn open(&self) -> Raw {
        match self.url.strip_prefix("sqlite://") {
            Some(path) => {
                let mut conn = SqliteConnection::establish(path).unwrap();
                conn.batch_execute("PRAGMA busy_timeout = 5000; PRAGMA foreign_keys = ON").unwrap();
                Raw::Sqlite(conn)
            }
            None => Raw::Postgres(PgConnection::establish(&self.url).unwrap()),
        }
    }
}

impl Raw {
    pub fn try_run(&mut self, sql: &str) -> QueryResult<()> {
        match self {
            Self::Postgres(conn) => conn.batch_execute(sql),
            Self::Sqlite(conn) => conn.batch_execute(sql),
        }
    }

    pub fn run(&mut self, sql: &str) {
        self.try_run(sql).unwrap();
    }

    /// Cuts all other connections to a PostgreSQL database, and waits for their end, for 5 s at most.
    pub fn end_others(&mut self) {
        self.run(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity \
             WHERE datname = current_database() AND pid <> pg_backend_pid()",
        );
    }

    /// The number that a query answers in its column `n`.
    pub fn number(&mut self, sql: &str) -> i64 {
        let query = diesel::sql_query(sql);
        let row: Number = match self {
            Self::Postgres(conn) => query.get_result(conn),
            Self::Sqlite(conn) => query.get_result(conn),
        }
        .unwrap();
        row.n
    }

    /// Bytes, as this database's SQL has them.
    pub fn bytes(&self, bytes: &[u8]) -> String {
        let digits = hex::encode(bytes);
        match self {
            Self::Postgres(_) => format!("'\\x{digits}'::bytea"),
            Self::Sqlite(_) => format!("x'{digits}'"),
        }
    }

    /// Keeps everybody else from writing, until the next `COMMIT` of this connection.
    pub fn hold_all(&mut self) {
        match self {
            Self::Postgres(_) => self.run("BEGIN; LOCK TABLE devices, key_packages IN SHARE ROW EXCLUSIVE MODE"),
            Self::Sqlite(_) => self.run("BEGIN IMMEDIATE"),
        }
    }

    /// How many statements wait for another transaction's locks now. PostgreSQL alone tells.
    pub fn waiting(&mut self) -> i64 {
        // The tests share a PostgreSQL, and its locks are those of all databases.
        self.number(
            "SELECT count(*) AS n FROM pg_locks JOIN pg_stat_activity USING (pid)
             WHERE NOT granted AND datname = current_database()",
        )
    }
}
