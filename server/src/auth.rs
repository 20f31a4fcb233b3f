//! From a bearer token to whoever makes a request.

mod cache;
mod extract;
pub mod jwt;

use std::sync::Arc;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use keypool_openapi::ProblemType;
use rand::TryRng;
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::{problem::Failure, store::DeviceRow};

pub(crate) use cache::TokenCache;
pub(crate) use extract::{Admin, Caller, Content, IdempotencyHeader, MaybeBearer, Params, Reader, Signed};

/// What every token begins with, so that a secret scanner knows one when it sees it.
const PREFIX: &str = "keypool_";
/// What an enrolment token begins with.
const ENROLMENT_PREFIX: &str = "keypool_enrol_";
const TOKEN_BYTES: usize = 32;

/// Who makes a request, by the bearer token that came with it.
#[derive(Clone, Debug)]
pub enum Bearer {
    /// A registered device.
    Device(Arc<DeviceRow>),
    /// The operator.
    Admin,
    /// Somebody with an enrolment token, by its SHA-256. It is looked at when it is used.
    Enrolment([u8; 32]),
    /// Somebody with a token of another party, which may be the operator's identity provider.
    Foreign(SecretString),
}

/// A bearer token of this server's: 256 random bits. Shown once; the server keeps its hash alone.
pub struct Token(SecretString);

impl Token {
    /// A new token of a device.
    ///
    /// # Errors
    /// When the operating system gives no random bytes.
    pub fn generate() -> Result<Self, Failure> {
        Self::random(PREFIX)
    }

    /// A new enrolment token.
    ///
    /// # Errors
    /// When the operating system gives no random bytes.
    pub fn enrolment() -> Result<Self, Failure> {
        Self::random(ENROLMENT_PREFIX)
    }

    fn random(prefix: &str) -> Result<Self, Failure> {
        let mut secret = [0; TOKEN_BYTES];
        rand::rngs::SysRng.try_fill_bytes(&mut secret).map_err(|error| {
            tracing::error!(%error, "the operating system gives no random bytes");
            Failure::new(ProblemType::Internal, "The server has no source of randomness; try again later.")
        })?;
        Ok(Self(format!("{prefix}{}", URL_SAFE_NO_PAD.encode(secret)).into()))
    }

    /// Reads a device's token from the value of an `Authorization` header; `None` where it is no such token.
    #[must_use]
    pub fn from_header(value: &str) -> Option<Self> {
        Self::with_prefix(PREFIX, bearer(value)?)
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
fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// The operator's token, as a hash that tells an attacker nothing by the time that comparing takes.
#[derive(Clone, Debug)]
pub(crate) struct AdminHash([u8; 32]);

impl AdminHash {
    pub(crate) fn of(token: &str) -> Self {
        Self(Sha256::digest(token).into())
    }

    pub(crate) fn is_of(&self, token: &str) -> bool {
        Self::of(token).0.ct_eq(&self.0).into()
    }
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
        assert!(Token::with_prefix(ENROLMENT_PREFIX, enrolment.reveal()).is_some());
        assert!(Token::with_prefix(ENROLMENT_PREFIX, Token::generate().unwrap().reveal()).is_none());
    }

    #[test]
    fn the_admin_token_is_told_from_all_others() {
        let admin = AdminHash::of("correct horse battery staple");
        assert!(admin.is_of("correct horse battery staple"));
        assert!(!admin.is_of("correct horse battery stapl"));
    }
}
