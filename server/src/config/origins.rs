//! The origins whose web pages may call the server.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Stands for all origins.
const ANY: &str = "*";

/// Origins (RFC 6454) whose web pages may call the server, or `*` for all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct CorsOrigins(Vec<String>);

/// An entry that is not an origin.
#[derive(Debug, thiserror::Error)]
#[error(
    "cors_origins names {0:?}, which is neither an origin in lower case, such as https://chat.example or \
     http://localhost:3000, without a path, nor *"
)]
pub struct NoOrigin(String);

impl TryFrom<Vec<String>> for CorsOrigins {
    type Error = NoOrigin;

    fn try_from(origins: Vec<String>) -> Result<Self, Self::Error> {
        match origins.iter().find(|origin| *origin != ANY && !is_origin(origin)) {
            Some(other) => Err(NoOrigin(other.clone())),
            None => Ok(Self(origins)),
        }
    }
}

/// Whether a browser could send this as the header `Origin`. The scheme may be that of an application, such as
/// `capacitor`.
fn is_origin(text: &str) -> bool {
    let Some((scheme, host)) = text.split_once("://") else { return false };
    let is_scheme = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"+-.".contains(&byte);
    let is_host = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-._:[]".contains(&byte);
    scheme.starts_with(|first: char| first.is_ascii_lowercase())
        && scheme.bytes().all(is_scheme)
        && !host.is_empty()
        && host.bytes().all(is_host)
}

impl From<CorsOrigins> for Vec<String> {
    fn from(origins: CorsOrigins) -> Self {
        origins.0
    }
}

impl fmt::Display for CorsOrigins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(","))
    }
}

impl CorsOrigins {
    /// Whether no origin is named.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether all origins are named.
    #[must_use]
    pub fn are_all(&self) -> bool {
        self.0.iter().any(|origin| origin == ANY)
    }

    /// The origins.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_browser_sends_is_an_origin() {
        for good in ["https://chat.example", "http://localhost:3000", "http://[::1]:8080", "capacitor://localhost", "*"]
        {
            let origins = CorsOrigins::try_from(vec![good.to_owned()]).unwrap();
            assert_eq!((origins.to_string().as_str(), origins.are_all()), (good, good == "*"));
        }
        for bad in [
            "",
            "chat.example",
            "https://chat.example/",
            "https://Chat.example",
            "https://a b",
            "null",
            "https://",
            "://chat.example",
            "https://user@chat.example",
            "https://chat.example/app",
            "https://*.example",
        ] {
            let error = CorsOrigins::try_from(vec![bad.to_owned()]).unwrap_err().to_string();
            assert!(error.contains(&format!("{bad:?}")), "{error}");
        }
    }
}
