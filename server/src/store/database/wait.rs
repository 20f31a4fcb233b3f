//! Waits for a PostgreSQL that is not there yet, as when it starts beside the server.

use std::{
    thread,
    time::{Duration, Instant},
};

use diesel::{Connection, ConnectionError, PgConnection};

use super::error::{StoreError, is_away, says_away};
use crate::config::Config;

/// The pauses between two attempts grow from the first to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Messages of libpq for a server that it cannot reach: the second line of every failed `connect`, a name without an
/// address, and an attempt without an answer.
const UNREACHABLE: [&str; 3] = ["Is the server running", "could not translate host name", "timeout expired"];

/// Connects to the configured `PostgreSQL`, by its URL with the defaults for libpq. While none takes connections, tries
/// again until `KEYPOOL_DATABASE_WAIT` is over. An error that waiting does not cure, such as a wrong password, ends the
/// wait at once. Blocks.
pub(super) fn connect(url: &str, config: &Config) -> Result<PgConnection, StoreError> {
    let (begun, mut pause) = (Instant::now(), Duration::ZERO);
    loop {
        let error = match PgConnection::establish(url) {
            Ok(conn) => {
                if !pause.is_zero() {
                    tracing::info!(waited = ?begun.elapsed(), "the database is there");
                }
                return Ok(conn);
            }
            Err(error) if is_absent(&error) => error,
            Err(error) => return Err(StoreError::fatal(error)),
        };
        let left = config.database_wait.saturating_sub(begun.elapsed());
        if left.is_zero() {
            return Err(StoreError::transient(error).explained(given_up(config.database_wait)));
        }
        if pause.is_zero() {
            say_that_it_waits(config, &error);
        }
        pause = (pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
        thread::sleep(pause.min(left));
    }
}

fn say_that_it_waits(config: &Config, error: &ConnectionError) {
    let (database, wait) = (&config.database_url, humantime::format_duration(config.database_wait));
    // libpq's reasons have several lines.
    let reason = error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
    tracing::warn!(%database, %reason, most = %wait, "waiting for the database: it takes no connections yet");
}

fn given_up(wait: Duration) -> String {
    format!(
        "no PostgreSQL takes connections there; waited {} for it (KEYPOOL_DATABASE_WAIT): start it, or correct \
         KEYPOOL_DATABASE_URL",
        humantime::format_duration(wait)
    )
}

/// Whether a later attempt may succeed: nobody answers at the address, or a PostgreSQL says that it cannot take the
/// connection now (SQLSTATE 57P03 and 53300).
///
/// libpq keeps the SQLSTATE of a failed attempt for itself, and Diesel passes on only the text. This libpq is built
/// without translations. PostgreSQL's own messages are recognised in English: before a connection is open, nobody can
/// ask for that, so one with another `lc_messages` ends the wait while it starts up.
fn is_absent(error: &ConnectionError) -> bool {
    match error {
        ConnectionError::BadConnection(text) => {
            // Of several addresses the last attempt decides: `localhost` may be refused at ::1 before 127.0.0.1 answers.
            let last = text.rsplit("connection to server").next().unwrap_or_default();
            says_away(last) || UNREACHABLE.iter().any(|symptom| last.contains(symptom))
        }
        ConnectionError::CouldntSetupConfiguration(error) => is_away(error),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_address_decides_whether_waiting_helps() {
        let refused = "connection to server at \"localhost\" (::1), port 5432 failed: Connection refused\n\tIs the server \
                       running on that host and accepting TCP/IP connections?\n";
        let at = "connection to server at \"localhost\" (127.0.0.1), port 5432 failed: ";
        for (said, is) in [
            (refused.to_owned(), true),
            (format!("{refused}{at}FATAL:  password authentication failed for user \"me\"\n"), false),
            (format!("{refused}{at}FATAL:  the database system is starting up\n"), true),
            (format!("{at}FATAL:  sorry, too many clients already\n"), true),
            (format!("{at}FATAL:  database \"keypool\" does not exist\n"), false),
            (format!("{at}timeout expired\n"), true),
            (format!("{at}server does not support SSL, but SSL was required\n"), false),
            ("could not translate host name \"db\" to address: Name or service not known\n".to_owned(), true),
        ] {
            assert_eq!(is_absent(&ConnectionError::BadConnection(said.clone())), is, "{said}");
        }
    }
}
