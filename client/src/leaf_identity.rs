//! The identity that a leaf claims.

use keypool_openapi::DeviceOf;
use openmls::prelude::{Ciphersuite, Credential, CredentialType};

/// The identity that a leaf claims: its credential and its signature key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeafIdentity {
    /// The member's credential.
    pub credential: Credential,
    /// The member's public signature key.
    pub signature_key: Vec<u8>,
    /// The ciphersuite of the group or the KeyPackage.
    pub ciphersuite: Ciphersuite,
    /// For a reserved KeyPackage: the device for which the server handed it out. The credential must be that device's.
    pub reserved_for: Option<DeviceOf>,
}

impl LeafIdentity {
    /// The device that the credential names; `None` if it is not a basic credential with a `user/device`.
    #[must_use]
    pub fn device(&self) -> Option<DeviceOf> {
        let is_basic = self.credential.credential_type() == CredentialType::Basic;
        is_basic.then(|| str::from_utf8(self.credential.serialized_content()).ok()?.parse().ok()).flatten()
    }

    /// The identity of the credential as text.
    #[must_use]
    pub fn name(&self) -> String {
        credential_name(&self.credential)
    }
}

/// The identity of a credential as text.
pub(crate) fn credential_name(credential: &Credential) -> String {
    String::from_utf8_lossy(credential.serialized_content()).into_owned()
}
