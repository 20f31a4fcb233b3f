//! The operator's token.

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// The hash of the operator's token. Comparing hashes leaks nothing about the token through timing.
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
