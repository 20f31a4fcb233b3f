//! From a bearer token to the caller of a request.

mod cache;
mod extract;
pub mod jwt;

use std::sync::Arc;

use secrecy::SecretString;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::store::{DeviceRow, ShownToken};

pub(crate) use cache::{Remembered, TokenCache};
pub(crate) use extract::{Admin, Content, IdempotencyHeader, MaybeBearer, Params, Reader, Signed, unknown_token};

/// Who makes a request, by the bearer token that came with it.
#[derive(Clone, Debug)]
pub enum Bearer {
    /// A registered device.
    Device(Caller),
    /// The operator.
    Admin,
    /// Somebody with an enrolment token, by its SHA-256. It is looked at when it is used.
    Enrolment([u8; 32]),
    /// Somebody with a token of another party, which may be the operator's identity provider.
    Foreign(SecretString),
}

/// The device that makes a request, known by its token.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The device.
    pub device: Arc<DeviceRow>,
    /// The SHA-256 of its token.
    pub token_hash: [u8; 32],
}

impl Caller {
    /// What it showed, for what may not be done by a token that is remembered and no longer valid.
    pub(crate) fn shown_token(&self) -> ShownToken {
        ShownToken { device: self.device.id, token_hash: self.token_hash }
    }
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
    fn the_admin_token_is_told_from_all_others() {
        let admin = AdminHash::of("correct horse battery staple");
        assert!(admin.is_of("correct horse battery staple"));
        assert!(!admin.is_of("correct horse battery stapl"));
    }
}
