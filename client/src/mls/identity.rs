use std::fmt;

use keypool_openapi::{DeviceName, UserName};
use openmls::prelude::{BasicCredential, CredentialWithKey};
use openmls_basic_credential::SignatureKeyPair;
use openmls_traits::{OpenMlsProvider, types::SignatureScheme};
use secrecy::SecretString;

use super::CIPHERSUITE;
use crate::{
    api::server_address,
    error::{Error, Result},
    storage::{IdentityRow, LocalStore},
};

/// Who this device is: its server, its credential `user/device`, and the key pair that signs for it.
pub struct DeviceIdentity {
    server: String,
    user: UserName,
    device: DeviceName,
    token: Option<SecretString>,
    signer: SignatureKeyPair,
}

impl fmt::Debug for DeviceIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceIdentity")
            .field("server", &self.server)
            .field("identity", &self.identity())
            .finish_non_exhaustive()
    }
}

impl DeviceIdentity {
    /// Makes the identity of a new device, with a new signature key pair, and stores both. In a store that holds this
    /// identity already, loads it; in one that holds another, fails.
    pub fn create(store: &LocalStore, server: &str, user: &UserName, device: &DeviceName) -> Result<Self> {
        let server = server_address(server)?.to_string();
        if let Some(found) = Self::find(store)? {
            return if found.server == server && found.user == *user && found.device == *device {
                Ok(found)
            } else {
                Err(Error::OtherDevice {
                    found: format!("{} at {}", found.identity(), found.server),
                    wanted: format!("{} at {server}", identity(user, device)),
                })
            };
        }
        let signer = SignatureKeyPair::new(CIPHERSUITE.signature_algorithm())
            .map_err(|error| Error::mls("generate a signature key pair")(error.into()))?;
        store.transaction(|| {
            signer.store(store.provider().storage()).map_err(Error::storage("write the signature key pair"))?;
            store.insert_identity(&IdentityRow {
                server: server.clone(),
                user: user.to_string(),
                device: device.to_string(),
                token: None,
                signature_key: signer.to_public_vec(),
            })
        })?;
        Ok(Self { server, user: user.clone(), device: device.clone(), token: None, signer })
    }

    /// Loads the identity of the device in a store.
    pub fn load(store: &LocalStore) -> Result<Self> {
        Self::find(store)?.ok_or_else(|| Error::NotInitialised(store.directory().to_owned()))
    }

    fn find(store: &LocalStore) -> Result<Option<Self>> {
        let Some(IdentityRow { server, user, device, token, signature_key }) = store.identity()? else {
            return Ok(None);
        };
        let scheme: SignatureScheme = CIPHERSUITE.signature_algorithm();
        let signer = SignatureKeyPair::read(store.provider().storage(), &signature_key, scheme)
            .ok_or_else(|| Error::MissingKeys(format!("{user}/{device}")))?;
        let damaged = |error: keypool_openapi::InvalidId| Error::Damaged(error.to_string());
        let (user, device) = (user.try_into().map_err(damaged)?, device.try_into().map_err(damaged)?);
        Ok(Some(Self { server, user, device, token, signer }))
    }

    /// Stores the bearer token that registration answered.
    pub(crate) fn set_token(&mut self, store: &LocalStore, token: SecretString) -> Result<()> {
        store.set_token(&token)?;
        self.token = Some(token);
        Ok(())
    }

    /// The server's address.
    #[must_use]
    pub fn server(&self) -> &str {
        &self.server
    }

    /// The user.
    #[must_use]
    pub fn user(&self) -> &UserName {
        &self.user
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &DeviceName {
        &self.device
    }

    /// The bearer token; `None` until the device is registered.
    #[must_use]
    pub fn token(&self) -> Option<&SecretString> {
        self.token.as_ref()
    }

    /// The credential's identity, `user/device`.
    #[must_use]
    pub fn identity(&self) -> String {
        identity(&self.user, &self.device)
    }

    /// The key pair that signs for this device.
    #[must_use]
    pub fn signer(&self) -> &SignatureKeyPair {
        &self.signer
    }

    /// The credential with the public signature key, as OpenMLS wants it.
    #[must_use]
    pub fn credential(&self) -> CredentialWithKey {
        CredentialWithKey {
            credential: BasicCredential::new(self.identity().into_bytes()).into(),
            signature_key: self.signer.to_public_vec().into(),
        }
    }
}

/// The identity in a device's credential.
pub(crate) fn identity(user: &UserName, device: &DeviceName) -> String {
    format!("{user}/{device}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn create(store: &LocalStore, server: &str, user: &str, device: &str) -> Result<DeviceIdentity> {
        DeviceIdentity::create(store, server, &user.parse().unwrap(), &device.parse().unwrap())
    }

    #[test]
    fn the_same_arguments_find_the_same_device_and_others_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let store = LocalStore::open(directory.path()).unwrap();
        assert!(matches!(DeviceIdentity::load(&store), Err(Error::NotInitialised(_))));
        let mut made = create(&store, "http://localhost:8080", "alice", "laptop").unwrap();
        made.set_token(&store, "keypool_1".into()).unwrap();
        let found = create(&store, "http://localhost:8080/", "alice", "laptop").unwrap();
        assert_eq!(found.signer().public(), made.signer().public());
        assert!(found.token().is_some());
        for (server, user, device) in [
            ("http://other", "alice", "laptop"),
            ("http://localhost:8080", "bob", "laptop"),
            ("http://localhost:8080", "alice", "phone"),
        ] {
            assert!(
                matches!(create(&store, server, user, device), Err(Error::OtherDevice { .. })),
                "{server} {user} {device}"
            );
        }
    }
}
