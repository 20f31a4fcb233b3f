//! Whether the members of a group are who their leaves say they are (RFC 9420, section 5.3.1; RFC 9750, section 8).

use std::pin::Pin;

use jiff::Timestamp;
use keypool_openapi::DeviceOf;
use openmls::prelude::{Ciphersuite, Credential, CredentialType};

use super::commits::device_of;
use crate::error::Result;

mod directory;
mod leaves;
mod reservations;

pub(super) use directory::DirectoryCheck;
pub(super) use leaves::{Answers, Claims, check_sender};
#[cfg(test)]
pub(super) use reservations::is_asked_for;
pub(super) use reservations::read_key_package;

/// What a leaf says: who its member is, and by which key they sign.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeafIdentity {
    /// Who the member is.
    pub credential: Credential,
    /// The public key that signs for them.
    pub signature_key: Vec<u8>,
    /// The ciphersuite of the group or the KeyPackage.
    pub ciphersuite: Ciphersuite,
}

impl LeafIdentity {
    /// The device that the credential names; `None` where it is no `user/device`.
    #[must_use]
    pub fn device(&self) -> Option<DeviceOf> {
        let is_basic = self.credential.credential_type() == CredentialType::Basic;
        is_basic.then(|| device_of(str::from_utf8(self.credential.serialized_content()).ok()?)).flatten()
    }

    /// The identity of the credential as text.
    #[must_use]
    pub fn name(&self) -> String {
        name_of(&self.credential)
    }
}

/// The identity of a credential as text.
pub(super) fn name_of(credential: &Credential) -> String {
    String::from_utf8_lossy(credential.serialized_content()).into_owned()
}

/// What an identity check knows of a leaf.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Standing {
    /// The key is the one by which the device signs now.
    Current {
        /// Since when, if that is known.
        since: Option<Timestamp>,
    },
    /// The device signed by this key until it changed its key. Members that were added before may still have it.
    Previous {
        /// Until when.
        until: Timestamp,
    },
    /// The device signed by this key, and is removed from the directory.
    Removed {
        /// When it was removed.
        at: Timestamp,
    },
    /// The directory keeps no signature keys, so nobody can tell. The leaf is accepted.
    Unverified,
    /// The key is not, and never was, one of the device. The leaf is refused.
    Unknown {
        /// Why, as the end of a sentence about the leaf.
        why: String,
    },
}

/// The answer of an [`IdentityCheck`]: a [`Standing`] for each leaf, in their order.
pub type Checking<'a> = Pin<Box<dyn Future<Output = Result<Vec<Standing>>> + 'a>>;

/// Says who is who. The client asks it about each leaf that enters a group and whose key it has not accepted before, and
/// about every leaf that is added or changes its key.
///
/// By default that is the directory of the Keypool server. An application with X.509 credentials, or with a directory of
/// its own, gives its own one to [`crate::MlsClient::with_identity_check`].
pub trait IdentityCheck {
    /// What is known of these leaves. An error means that there is no answer for now: what the leaves came with is neither
    /// accepted nor refused, and comes again.
    fn check<'a>(&'a self, leaves: &'a [LeafIdentity]) -> Checking<'a>;
}

impl<C: IdentityCheck + ?Sized> IdentityCheck for &C {
    fn check<'a>(&'a self, leaves: &'a [LeafIdentity]) -> Checking<'a> {
        (**self).check(leaves)
    }
}
