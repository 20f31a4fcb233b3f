//! The language of PostgreSQL's messages. Diesel passes on the SQLSTATE of few errors, so the others are told apart by
//! their English text.

use diesel::{PgConnection, QueryableByName, RunQueryDsl, connection::SimpleConnection, sql_types::Text};

/// The setting's value, and the account's name as SQL writes it.
#[derive(QueryableByName)]
struct Language {
    #[diesel(sql_type = Text)]
    messages: String,
    #[diesel(sql_type = Text)]
    account: String,
}

/// Asks for English messages. Only a superuser, or an account with that right, may: others get the operator's language.
pub(super) fn speak_english(conn: &mut PgConnection) {
    // A refusal, or a broken connection, shows at the next statement.
    let _ = conn.batch_execute("SET lc_messages = 'C'");
}

/// Warns if the messages are in another language.
pub(super) fn warn_of_another(conn: &mut PgConnection) {
    let sql = "SELECT current_setting('lc_messages') AS messages, quote_ident(current_user) AS account";
    // A database that only speaks PostgreSQL's protocol may not know the setting.
    let Ok(Language { messages, account }) = diesel::sql_query(sql).get_result(conn) else { return };
    if !is_english(&messages) {
        tracing::warn!(
            lc_messages = messages,
            "PostgreSQL answers in another language: deadlocks and timeouts are not recognised, and answered 500. As a superuser, \
             run ALTER ROLE {account} SET lc_messages = 'C'"
        );
    }
}

fn is_english(lc_messages: &str) -> bool {
    let language = lc_messages.split(['.', '@', '_', '-']).next().unwrap_or_default();
    ["", "C", "POSIX", "en", "English"].contains(&language)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn english_has_many_names() {
        for english in ["C", "C.UTF-8", "POSIX", "en_US.UTF-8", "en_GB", "English_United States.1252", ""] {
            assert!(is_english(english), "{english}");
        }
        for other in ["de_DE.UTF-8", "ca_ES@valencia", "ja"] {
            assert!(!is_english(other), "{other}");
        }
    }
}
