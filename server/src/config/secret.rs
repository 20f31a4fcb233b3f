//! Settings that are or contain a secret. Their output never shows it.

use std::fmt;

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize, Serializer};
use url::Url;

/// A database's URL. Its password is never shown.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct DatabaseUrl(pub(super) String);

impl DatabaseUrl {
    /// The URL with the password.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Checks that libpq reads the URL as its writer meant it. Otherwise libpq's errors would show parts of the password, as
    /// the name of a host or of a parameter.
    pub(super) fn check(&self) -> Result<(), &'static str> {
        if let Some(path) = self.0.strip_prefix("sqlite://") {
            return match path {
                "" | ":memory:" => Err("has to name a file, such as sqlite://keypool.db"),
                _ if path.contains('?') => {
                    Err("has to be a path without parameters: the ? would be part of the file's name")
                }
                _ => Ok(()),
            };
        }
        let Some(rest) = POSTGRES.iter().find_map(|scheme| self.0.strip_prefix(scheme)) else {
            return Err("has to begin with sqlite:// or postgres://");
        };
        let (account, place) = rest.rsplit_once('@').unwrap_or(("", rest));
        let parameters = place.split_once('?').map_or("", |(_, parameters)| parameters);
        let are_pairs = parameters.is_empty() || parameters.split('&').all(is_parameter);
        if account.contains(['@', '/', '?', '#', '[', ']']) || !are_pairs || !is_percent_encoded(rest) {
            return Err(PERCENT_ENCODE);
        }
        Ok(())
    }
}

const PERCENT_ENCODE: &str = "has to have %40 for an @ in the user, the password or a parameter, and %2F %3F %23 %5B %5D \
                              %25 %26 for / ? # [ ] % & there";

/// How PostgreSQL's URLs begin.
const POSTGRES: [&str; 2] = ["postgres://", "postgresql://"];

fn is_parameter(parameter: &str) -> bool {
    parameter.split_once('=').is_some_and(|(name, value)| !name.is_empty() && !value.contains('='))
}

/// Whether each `%` begins two hexadecimal digits.
fn is_percent_encoded(text: &str) -> bool {
    let mut after = text.split('%').skip(1);
    after.all(|text| text.get(..2).is_some_and(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit())))
}

impl From<String> for DatabaseUrl {
    fn from(url: String) -> Self {
        Self(url)
    }
}

impl fmt::Display for DatabaseUrl {
    /// Shows the URL without the parts that may be secret: password and parameters, or everything if it is not a URL.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.starts_with("sqlite://") {
            return f.write_str(&self.0);
        }
        if self.check().is_err() {
            return f.write_str("***");
        }
        match Url::parse(&self.0) {
            Ok(mut url) if url.has_host() => {
                url.set_query(None);
                if url.password().is_some() && url.set_password(Some("***")).is_err() {
                    return f.write_str("***");
                }
                write!(f, "{url}")
            }
            _ => f.write_str("***"),
        }
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DatabaseUrl({self})")
    }
}

impl Serialize for DatabaseUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The operator's bearer token. It is never shown.
#[derive(Clone, Deserialize)]
#[serde(transparent)]
pub struct AdminToken(SecretString);

impl AdminToken {
    /// The token in plain text.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl From<&str> for AdminToken {
    fn from(token: &str) -> Self {
        Self(token.into())
    }
}

impl fmt::Debug for AdminToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AdminToken(***)")
    }
}

impl Serialize for AdminToken {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_is_not_shown() {
        for url in [
            "postgres://me:hunter2@db/keypool",
            "postgres://me:hun@ter2@db/keypool?password=hunter2",
            "postgres://me:hun?ter2@db/keypool",
            "postgres://me:12/hunter2@db/keypool",
            "postgres://db/keypool?user=me&password=hunter2@",
            "postgres:/me:hunter2@db/keypool",
            "host=db user=me password=hunter2",
        ] {
            let url = DatabaseUrl(url.to_owned());
            let shown = format!("{url:?} {}", serde_json::to_string(&url).unwrap());
            assert!(!shown.contains("ter2") && !shown.contains("hun"), "{shown}");
        }
        assert_eq!(DatabaseUrl("postgres://me:x@db/keypool".to_owned()).to_string(), "postgres://me:***@db/keypool");
    }

    #[test]
    fn a_url_that_libpq_would_read_otherwise_is_refused() {
        for url in [
            "postgres://me:s3cr@et@db/keypool",
            "postgres://me:s3cr/et@db/keypool",
            "postgres://me:s3cr?et@db/keypool",
            "postgres://me:s3cr#et@db/keypool",
            "postgres://me:s3cr%et@db/keypool",
            "postgresql://db/keypool?password=s3cr&et",
            "postgresql://db/keypool?password=s3cr=et",
            "postgres://db/keypool?password=s3cr@et",
        ] {
            let refused = DatabaseUrl(url.to_owned()).check().unwrap_err();
            assert!(refused.contains("%40"), "{url}: {refused}");
        }
        for url in ["sqlite://", "sqlite://:memory:", "sqlite://q.db?mode=rwc", "mysql://db/keypool", "q.db"] {
            assert!(DatabaseUrl(url.to_owned()).check().is_err(), "{url}");
        }
        for url in [
            "sqlite:///var/lib/keypool/k.db",
            "postgres://me:s3cr%40et@db/keypool?sslmode=verify-full&application_name=a%26b",
            "postgresql://me@[::1]:5432/keypool",
            "postgres:///keypool?host=/run/postgresql&user=me",
            "postgres://a:5432,b:5432/keypool?target_session_attrs=read-write",
        ] {
            assert_eq!(DatabaseUrl(url.to_owned()).check(), Ok(()), "{url}");
        }
    }

    #[test]
    fn the_admin_token_is_not_shown() {
        let token = AdminToken::from("correct horse battery staple");
        let shown = format!("{token:?} {}", serde_json::to_string(&token).unwrap());
        assert!(!shown.contains("horse"), "{shown}");
    }
}
