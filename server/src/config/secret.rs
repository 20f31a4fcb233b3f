//! Settings that are, or hold, a secret: what shows one never shows it.

use std::fmt;

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize, Serializer};
use url::Url;

/// A database's address. Its password is never shown.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct DatabaseUrl(pub(super) String);

impl DatabaseUrl {
    /// The address with the password.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for DatabaseUrl {
    fn from(url: String) -> Self {
        Self(url)
    }
}

impl fmt::Display for DatabaseUrl {
    /// The address without what could be a secret: password and parameters, or all of it where it is no URL.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.starts_with("sqlite://") {
            return f.write_str(&self.0);
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

/// The operator's own bearer token. Never shown.
#[derive(Clone, Deserialize)]
#[serde(transparent)]
pub struct AdminToken(SecretString);

impl AdminToken {
    /// The token itself.
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
    fn the_admin_token_is_not_shown() {
        let token = AdminToken::from("correct horse battery staple");
        let shown = format!("{token:?} {}", serde_json::to_string(&token).unwrap());
        assert!(!shown.contains("horse"), "{shown}");
    }
}
