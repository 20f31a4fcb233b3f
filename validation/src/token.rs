//! Bearer tokens that the server gave out: what they look like, and what it keeps of them.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use rand::{
    TryRng,
    rngs::{SysError, SysRng},
};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};

/// What every token begins with, so that a secret scanner knows one when it sees it.
const PREFIX: &str = "keypool_";
/// What an enrolment token begins with.
const ENROLMENT_PREFIX: &str = "keypool_enrol_";
const TOKEN_BYTES: usize = 32;

/// A bearer token of this server's: 256 random bits. Shown once; the server keeps its hash alone.
pub struct Token(SecretString);

impl Token {
    /// A new token of a device.
    ///
    /// # Errors
    /// When the operating system gives no random bytes.
    pub fn generate() -> Result<Self, SysError> {
        Self::random(PREFIX)
    }

    /// A new enrolment token.
    ///
    /// # Errors
    /// When the operating system gives no random bytes.
    pub fn enrolment() -> Result<Self, SysError> {
        Self::random(ENROLMENT_PREFIX)
    }

    fn random(prefix: &str) -> Result<Self, SysError> {
        let mut secret = [0; TOKEN_BYTES];
        SysRng.try_fill_bytes(&mut secret)?;
        Ok(Self(format!("{prefix}{}", URL_SAFE_NO_PAD.encode(secret)).into()))
    }

    /// Reads a device's token from the value of an `Authorization` header; `None` where it is no such token.
    #[must_use]
    pub fn from_header(value: &str) -> Option<Self> {
        Self::with_prefix(PREFIX, bearer(value)?)
    }

    /// Reads an enrolment token from what a header [bears](bearer); `None` where it is no such token.
    #[must_use]
    pub fn enrolment_from(token: &str) -> Option<Self> {
        Self::with_prefix(ENROLMENT_PREFIX, token)
    }

    fn with_prefix(prefix: &str, token: &str) -> Option<Self> {
        let secret = URL_SAFE_NO_PAD.decode(token.strip_prefix(prefix)?).ok()?;
        (secret.len() == TOKEN_BYTES).then(|| Self(token.into()))
    }

    /// What the server keeps of it.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        Sha256::digest(self.0.expose_secret()).into()
    }

    /// The token itself, for the one answer that shows it.
    #[must_use]
    pub fn reveal(&self) -> &str {
        self.0.expose_secret()
    }
}

/// The token in the value of an `Authorization` header, where that is of the scheme `Bearer`.
#[must_use]
pub fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_the_header_and_nothing_else_does() {
        let token = Token::generate().unwrap();
        let read = Token::from_header(&format!("Bearer {}", token.reveal())).unwrap();
        assert_eq!(read.hash(), token.hash());
        assert!(Token::from_header(&format!("bearer {}", token.reveal())).is_some());
        for bad in [
            "",
            "Bearer",
            "Bearer keypool_",
            "Bearer keypool_AAAA",
            &format!("Basic {}", token.reveal()),
            &format!("Bearer {}", &token.reveal()[PREFIX.len()..]),
            &format!("Bearer {}A", token.reveal()),
        ] {
            assert!(Token::from_header(bad).is_none(), "{bad:?} was taken");
        }
        assert_ne!(Token::generate().unwrap().hash(), token.hash());
    }

    #[test]
    fn an_enrolment_token_is_no_devices_token() {
        let enrolment = Token::enrolment().unwrap();
        assert!(Token::from_header(&format!("Bearer {}", enrolment.reveal())).is_none());
        assert!(Token::enrolment_from(enrolment.reveal()).is_some());
        assert!(Token::enrolment_from(Token::generate().unwrap().reveal()).is_none());
    }
}
