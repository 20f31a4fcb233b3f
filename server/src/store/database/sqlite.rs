//! SQLite: opens connections and migrates the schema.

use std::{
    fs::{File, OpenOptions},
    io::{self, ErrorKind},
    path::Path,
    time::Duration,
};

use diesel::{
    Connection, QueryResult, QueryableByName, RunQueryDsl as _, SqliteConnection,
    connection::SimpleConnection,
    r2d2::Pool,
    sql_types::{BigInt, Integer},
};

use super::{
    conn::Conn,
    error::StoreError,
    liveness::{self, Connector, Driver},
    migrations::{self, SQLITE_MIGRATIONS},
};

/// WAL lets readers continue while one connection writes. FULL makes each answered commit survive a power cut. The log
/// is copied into the file at 16,000 pages (64 MiB). If a long read makes the log larger, it is truncated afterwards.
const SESSION: &str = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; \
                       PRAGMA foreign_keys = ON; PRAGMA wal_autocheckpoint = 16000; \
                       PRAGMA journal_size_limit = 67108864";

/// The longest that a statement waits for the lock of another process.
const BUSY: Duration = Duration::from_secs(5);

/// SQLite's application id of a server's database, `KPSV`: a client that finds the file sees that it is none of its own.
const APPLICATION: i32 = 0x4b50_5356;

/// File mode: only the owner may read and write.
#[cfg(unix)]
const PRIVATE: u32 = 0o600;

/// Page cache of 16 MB for the writer. With SQLite's usual 2 MB, the changes of a batch do not fit, and some pages are
/// written to the log more than once.
const WRITER: &str = "PRAGMA cache_size = -16000";

/// Returns a function that sets the session parameters of each new connection.
fn session(
    pragmas: &'static str,
    begin: impl Fn(&mut Conn<'_>) -> QueryResult<()>,
) -> impl Fn(&mut Conn<'_>) -> QueryResult<()> {
    move |conn| {
        if let Conn::Sqlite(conn) = conn {
            wait_for_locks(conn, BUSY)?;
            conn.batch_execute(SESSION)?;
            conn.batch_execute(pragmas)?;
        }
        begin(conn)
    }
}

/// Opens the pool with the one writing connection.
pub(super) fn writer(
    path: &str,
    begin: impl Fn(&mut Conn<'_>) -> QueryResult<()> + Send + Sync + 'static,
) -> Result<Pool<Connector<SqliteConnection>>, StoreError> {
    liveness::pool(Connector::new(path, session(WRITER, begin)), 1)
}

pub(super) fn readers(
    path: &str,
    size: u32,
    begin: impl Fn(&mut Conn<'_>) -> QueryResult<()> + Send + Sync + 'static,
) -> Result<Pool<Connector<SqliteConnection>>, StoreError> {
    liveness::pool(Connector::new(path, session("", begin)), size)
}

impl Driver for SqliteConnection {
    fn has_hung_up(&mut self) -> bool {
        // SQLite runs in this process: no peer can close the connection.
        false
    }

    fn conn(&mut self) -> Conn<'_> {
        Conn::Sqlite(self)
    }
}

/// Opens a file, or creates it with a private mode.
#[cfg(unix)]
pub(super) fn open_private(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    OpenOptions::new().read(true).append(true).create(true).mode(PRIVATE).open(path)
}

/// Creates the file with a private mode before SQLite opens it. SQLite gives the log and its index the same mode.
#[cfg(unix)]
pub(super) fn make_private(path: &str) -> anyhow::Result<()> {
    use std::{
        fs::{self, Permissions},
        os::unix::fs::PermissionsExt,
    };
    open_private(path.as_ref()).map_err(|error| {
        let why = why_not_opened(path, &error);
        anyhow::Error::new(error).context(why)
    })?;
    for file in [path.to_owned(), format!("{path}-wal"), format!("{path}-shm"), format!("{path}.generation")] {
        let Ok(found) = fs::metadata(&file) else { continue };
        if found.permissions().mode() & 0o777 == PRIVATE {
            continue;
        }
        match fs::set_permissions(&file, Permissions::from_mode(PRIVATE)) {
            Ok(()) => tracing::info!(file, "others could read the database's file: now its owner alone can"),
            Err(error) => {
                tracing::warn!(file, %error, "others can read the database's file, and it could not be changed");
            }
        }
    }
    Ok(())
}

/// Says what an operator has to change.
fn why_not_opened(path: &str, error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => rights(path),
        ErrorKind::NotFound => format!("the directory {} does not exist: make it first", directory(path).display()),
        ErrorKind::IsADirectory => format!("{path} is a directory: name a file, such as {path}/keypool.db"),
        _ => format!("cannot open or make the file {path}"),
    }
}

fn directory(path: &str) -> &Path {
    Path::new(path).parent().filter(|directory| *directory != Path::new("")).unwrap_or(Path::new("."))
}

/// Names the user who needs the right to write, and the file: SQLite makes its log beside the database's file.
pub(super) fn rights(path: &str) -> String {
    let directory = directory(path).display();
    format!("{} has to be allowed to write the file {path}, and to make files in {directory}", process())
}

#[cfg(target_os = "linux")]
fn process() -> String {
    format!("this process, of the user with the number {},", rustix::process::geteuid().as_raw())
}

#[cfg(not(target_os = "linux"))]
fn process() -> String {
    "this process".to_owned()
}

#[cfg(not(unix))]
pub(super) fn open_private(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).append(true).create(true).open(path)
}

#[cfg(not(unix))]
pub(super) fn make_private(path: &str) -> anyhow::Result<()> {
    Ok(open_private(path.as_ref()).map(drop)?)
}

fn wait_for_locks(conn: &mut SqliteConnection, most: Duration) -> QueryResult<()> {
    conn.batch_execute(&format!("PRAGMA busy_timeout = {}", most.as_millis()))
}

/// Brings the schema up to date. Waits up to `wait`, and at least [`BUSY`], for another process that writes.
pub(super) fn migrate(path: &str, wait: Duration) -> Result<(), StoreError> {
    make_private(path).map_err(StoreError::fatal)?;
    let mut conn = SqliteConnection::establish(path).map_err(StoreError::fatal)?;
    wait_for_locks(&mut conn, wait.max(BUSY))?;
    conn.batch_execute(SESSION)
        .map_err(StoreError::from)
        .map_err(|error| if error.refuses_writes { error.explained(rights(path)) } else { error })?;
    // The first process migrates. The others wait for its transaction and then have nothing to do.
    conn.exclusive_transaction(|conn| {
        check_application(conn, path)?;
        migrations::migrate(conn, SQLITE_MIGRATIONS)
    })
}

#[derive(QueryableByName)]
struct Application {
    #[diesel(sql_type = Integer)]
    application_id: i32,
    /// Tables of the program `keypool`, whose early versions set no application id.
    #[diesel(sql_type = BigInt)]
    device_tables: i64,
}

/// Fails if the file is another program's database, such as that of a device. Marks a server's database as such.
fn check_application(conn: &mut SqliteConnection, path: &str) -> Result<(), StoreError> {
    let found = diesel::sql_query(
        "SELECT application_id, (SELECT count(*) FROM sqlite_schema WHERE name = 'device_identity') AS device_tables \
         FROM pragma_application_id",
    );
    match found.get_result(conn).map_err(StoreError::from)? {
        Application { application_id: APPLICATION, .. } => Ok(()),
        Application { application_id: 0, device_tables: 0 } => {
            Ok(conn.batch_execute(&format!("PRAGMA application_id = {APPLICATION}"))?)
        }
        _ => Err(StoreError::fatal(anyhow::anyhow!(
            "{path} is the database of another program, such as the keys of a device: name another file in \
             KEYPOOL_DATABASE_URL"
        ))),
    }
}

/// Query plans of SQLite, for the tests of statements that must not read whole tables.
#[cfg(test)]
pub(crate) mod plans {
    use diesel::{debug_query, prelude::*, query_builder::QueryFragment, sql_types::Text, sqlite::Sqlite};

    use super::*;

    #[derive(QueryableByName)]
    struct Step {
        #[diesel(sql_type = Text)]
        detail: String,
    }

    /// Returns an empty database with the current schema.
    pub fn migrated() -> SqliteConnection {
        let mut conn = SqliteConnection::establish(":memory:").unwrap();
        migrations::migrate(&mut conn, SQLITE_MIGRATIONS).unwrap();
        conn
    }

    pub fn plan(query: &impl QueryFragment<Sqlite>) -> Vec<String> {
        let query = debug_query::<Sqlite, _>(query).to_string();
        let (statement, _) = query.split_once(" -- binds").unwrap();
        let steps = diesel::sql_query(format!("EXPLAIN QUERY PLAN {statement}")).load::<Step>(&mut migrated());
        steps.unwrap().into_iter().map(|step| step.detail).collect()
    }
}
