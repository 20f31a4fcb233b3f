//! PostgreSQL: opens connections and migrates the schema.

use diesel::{
    PgConnection, QueryResult,
    connection::SimpleConnection,
    dsl::sql,
    migration::{Migration, MigrationSource},
    pg::Pg,
    prelude::*,
    r2d2::Pool,
    sql_types::{BigInt, Text},
};

use super::{
    conn::Conn,
    error::StoreError,
    language,
    liveness::{self, Connector, Driver},
    migrations::{self, POSTGRES_MIGRATIONS},
    wait,
};
use crate::config::Config;

diesel::table! {
    /// Diesel's record of applied migrations.
    #[sql_name = "__diesel_schema_migrations"]
    applied (version) {
        version -> Text,
    }
}

/// Advisory lock for migrations, so that several servers may start at once.
const MIGRATION_LOCK: i64 = 0x6b65_7970_6f6f_6c31;

/// The timeouts keep a stuck statement or a forgotten transaction from holding a connection for ever. Each statement is
/// planned once for each connection, since every plan uses the keys that it is given. Sequential scans are off: a table
/// looks small until it is first analysed, and a plan for a small table would stay while the table grows. JIT is off:
/// no statement runs long enough to gain from it, and it costs 50 ms where statistics are missing and a statement looks
/// expensive.
const SESSION: &str = "SET statement_timeout = '30s'; SET idle_in_transaction_session_timeout = '30s'; \
                       SET plan_cache_mode = force_generic_plan; SET jit = off; SET enable_seqscan = off";

/// Defaults for libpq where the URL sets no value, in seconds or milliseconds. They detect a database that vanished
/// without closing the connection; TCP alone would take two hours.
const DEFAULTS: [(&str, &str); 3] =
    [("connect_timeout", "5"), ("keepalives_idle", "10"), ("tcp_user_timeout", "15000")];

/// Messages of PostgreSQL for a missing right. Diesel passes on only the message.
const DENIALS: [&str; 2] = ["permission denied", "must be owner"];

pub(super) fn pool(
    url: &str,
    size: u32,
    begin: impl Fn(&mut Conn<'_>) -> QueryResult<()> + Send + Sync + 'static,
) -> Result<Pool<Connector<PgConnection>>, StoreError> {
    let begin = move |conn: &mut Conn<'_>| {
        if let Conn::Postgres(conn) = conn {
            language::speak_english(conn);
            conn.batch_execute(SESSION)?;
        }
        begin(conn)
    };
    liveness::pool(Connector::new(&with_defaults(url), begin), size)
}

impl Driver for PgConnection {
    fn has_hung_up(&mut self) -> bool {
        // Reads pending input twice: a closed connection may first deliver the server's last message.
        (0..2).any(|_| self.notifications_iter().any(|notification| notification.is_err()))
    }

    fn conn(&mut self) -> Conn<'_> {
        Conn::Postgres(self)
    }
}

/// Adds the defaults for parameters that the URL does not set.
pub(crate) fn with_defaults(url: &str) -> String {
    let mut url = url.to_owned();
    for (name, value) in DEFAULTS {
        let parameters = url.split_once('?').map_or("", |(_, parameters)| parameters);
        if parameters.split('&').all(|one| one.split('=').next() != Some(name)) {
            let separator = if url.contains('?') { '&' } else { '?' };
            url.extend([separator.to_string().as_str(), name, "=", value]);
        }
    }
    url
}

pub(super) fn migrate(config: &Config) -> Result<(), StoreError> {
    // Initialise OpenSSL first: libpq's atexit cleanup crashed at exit while a pool thread was connecting.
    openssl_sys::init();
    let mut conn = wait::connect(&with_defaults(config.database_url.expose()), config)?;
    language::speak_english(&mut conn);
    language::warn_of_another(&mut conn);
    // The lock belongs to the session, so it ends with this connection in every case.
    diesel::sql_query("SELECT pg_advisory_lock($1)").bind::<BigInt, _>(MIGRATION_LOCK).execute(&mut conn)?;
    // An account without the right to change the schema can still start if nothing is left to migrate. Diesel's harness
    // would try to write.
    if is_migrated(&mut conn).unwrap_or(false) {
        return Ok(());
    }
    migrations::migrate(&mut conn, POSTGRES_MIGRATIONS).map_err(|error| with_remedy(error, &mut conn))
}

/// Names the right that an account lacks which may not change the schema.
fn with_remedy(error: StoreError, conn: &mut PgConnection) -> StoreError {
    let text = error.to_string();
    if !DENIALS.iter().any(|denial| text.contains(denial)) {
        return error;
    }
    let account = diesel::select(sql::<Text>("quote_ident(current_user)")).get_result::<String>(conn);
    let Ok(account) = account else { return error };
    error.explained(format!(
        "{account} may not change the schema: run `keypool-server migrate` with the account that owns the tables, or, if there \
         are none yet, run GRANT USAGE, CREATE ON SCHEMA public TO {account}"
    ))
}

fn is_migrated(conn: &mut PgConnection) -> diesel::migration::Result<bool> {
    let done: Vec<String> = applied::table.select(applied::version).load(conn)?;
    let ours = MigrationSource::<Pg>::migrations(&POSTGRES_MIGRATIONS)?;
    Ok(ours.iter().all(|one| done.contains(&one.name().version().to_string())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_url_says_goes_over_the_defaults() {
        assert_eq!(
            with_defaults("postgres://a@b/c"),
            "postgres://a@b/c?connect_timeout=5&keepalives_idle=10&tcp_user_timeout=15000"
        );
        assert_eq!(
            with_defaults("postgres://b/c?sslmode=require&connect_timeout=1"),
            "postgres://b/c?sslmode=require&connect_timeout=1&keepalives_idle=10&tcp_user_timeout=15000"
        );
    }
}
