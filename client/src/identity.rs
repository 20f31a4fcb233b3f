//! The identity of this device: its server, its name and its signature keys.

use std::{collections::BTreeMap, fmt, sync::Arc};

use keypool_openapi::{DeviceName, UserName, device_name};
use openmls::prelude::{BasicCredential, Ciphersuite, CredentialWithKey, MlsGroup};
use openmls_basic_credential::SignatureKeyPair;
use openmls_traits::OpenMlsProvider;
use parking_lot::RwLock;
use secrecy::SecretString;
use uuid::Uuid;

use crate::{
    api::server_address,
    error::{Error, Result},
    pool::{KeyPackageSigner, supersede_all},
    prepared_signer::PreparedSigner,
    storage::{IdentityRow, LocalStore},
};

/// A signature key pair for each ciphersuite.
pub(crate) type Signers = BTreeMap<u16, Arc<SignatureKeyPair>>;

/// The identity of this device: its server, its credential `user/device`, and a signature key pair for each ciphersuite
/// in which it keeps a pool.
pub struct DeviceIdentity {
    server: String,
    user: UserName,
    device: DeviceName,
    registration_key: Option<String>,
    secrets: RwLock<Secrets>,
}

#[derive(Default)]
struct Secrets {
    token: Option<SecretString>,
    signers: Signers,
    /// The key pairs that replace the signers. Each takes effect once the server has accepted it.
    next: Signers,
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
    /// Creates and stores the identity of a new device, with a new signature key pair for each ciphersuite. If the
    /// store already holds this identity, loads it and adds the new ciphersuites. Replaces another identity that was
    /// never registered. Fails if the store holds another identity that was.
    pub fn create(
        store: &LocalStore,
        server: &str,
        (user, device): (&UserName, &DeviceName),
        ciphersuites: &[Ciphersuite],
    ) -> Result<Self> {
        let server = server_address(server)?;
        let mut made = match Self::find(store)? {
            Some(found) if found.server == server && found.user == *user && found.device == *device => found,
            Some(found) if found.token().is_some() => {
                return Err(Error::OtherDevice {
                    found: format!("{} at {}", found.identity(), found.server),
                    wanted: format!("{} at {server}", device_name(user, device)),
                });
            }
            _ => Self {
                server,
                user: user.clone(),
                device: device.clone(),
                registration_key: None,
                secrets: RwLock::default(),
            },
        };
        store.transaction(|| {
            if made.secrets.get_mut().signers.is_empty() {
                store.delete_identity()?;
                made.registration_key = Some(Uuid::new_v4().to_string());
                store.insert_identity(&made.row())?;
            }
            let signers = &mut made.secrets.get_mut().signers;
            for &ciphersuite in ciphersuites {
                if !signers.contains_key(&u16::from(ciphersuite)) {
                    let signer = new_signer(store, ciphersuite)?;
                    store.set_signature_key(ciphersuite.into(), signer.public())?;
                    signers.insert(ciphersuite.into(), signer);
                }
            }
            Ok(())
        })?;
        Ok(made)
    }

    fn row(&self) -> IdentityRow {
        IdentityRow {
            server: self.server.clone(),
            user: self.user.to_string(),
            device: self.device.to_string(),
            token: self.token(),
            registration_key: self.registration_key.clone(),
            signature_keys: Vec::new(),
            next_signature_keys: Vec::new(),
        }
    }

    /// Makes the key pairs that are to replace those of all ciphersuites, within the caller's transaction, for
    /// [`Self::begin_change`]. The old key pairs stay in OpenMLS's storage, because groups that the device joined with them
    /// keep using them.
    ///
    /// `None` if an earlier change is not finished: that one has to end first.
    pub(crate) fn make_next_signers(&self, store: &LocalStore) -> Result<Option<Signers>> {
        if !self.secrets.read().next.is_empty() {
            return Ok(None);
        }
        let next = |ciphersuite: Ciphersuite| {
            let signer = new_signer(store, ciphersuite)?;
            store.set_next_signature_key(ciphersuite.into(), signer.public())?;
            Ok((ciphersuite.into(), signer))
        };
        self.ciphersuites().into_iter().map(next).collect::<Result<_>>().map(Some)
    }

    /// Begins to change the signature key of each ciphersuite. The next key pairs sign new KeyPackages at once; new
    /// groups use the old key pairs until the server has accepted the change.
    pub(crate) fn begin_change(&self, next: Signers) {
        self.secrets.write().next = next;
    }

    /// The old and the next key pair of a ciphersuite whose change the server has not accepted yet.
    pub(crate) fn change(&self, ciphersuite: u16) -> Option<(Arc<SignatureKeyPair>, Arc<SignatureKeyPair>)> {
        let secrets = self.secrets.read();
        Some((Arc::clone(secrets.signers.get(&ciphersuite)?), Arc::clone(secrets.next.get(&ciphersuite)?)))
    }

    /// Records that the server has accepted the next key pair of a ciphersuite. Does nothing if no change is in
    /// progress.
    pub(crate) fn accept_change(&self, store: &LocalStore, ciphersuite: u16) -> Result<()> {
        if self.change(ciphersuite).is_some() {
            store.use_next_signature_key(ciphersuite)?;
            let mut secrets = self.secrets.write();
            if let Some(next) = secrets.next.remove(&ciphersuite) {
                secrets.signers.insert(ciphersuite, next);
            }
        }
        Ok(())
    }

    /// The Idempotency-Key with which this device registers once more, after the server has removed it. The token and the
    /// keys stay until the server has accepted that.
    pub(crate) fn begin_registration(&mut self, store: &LocalStore) -> Result<String> {
        if let Some(key) = &self.registration_key {
            return Ok(key.clone());
        }
        let key = Uuid::new_v4().to_string();
        store.set_registration_key(&key)?;
        self.registration_key = Some(key.clone());
        Ok(key)
    }

    /// Begins anew with the token of another registration, and with new signature keys: the directory lists the old ones
    /// as those of the device that was removed. The device's groups keep using the old key pairs.
    pub(crate) fn begin_anew(&mut self, store: &LocalStore, token: SecretString) -> Result<()> {
        let ciphersuites = self.ciphersuites();
        let signers: Signers = store.transaction(|| {
            store.set_token(&token)?;
            let signer = |ciphersuite: Ciphersuite| {
                let signer = new_signer(store, ciphersuite)?;
                store.set_signature_key(ciphersuite.into(), signer.public())?;
                Ok((ciphersuite.into(), signer))
            };
            store.forget_next_signature_keys()?;
            supersede_all(store)?;
            ciphersuites.into_iter().map(signer).collect::<Result<_>>()
        })?;
        *self.secrets.get_mut() = Secrets { token: Some(token), signers, next: Signers::new() };
        self.registration_key = None;
        Ok(())
    }

    /// Loads the identity of the device in a store.
    pub fn load(store: &LocalStore) -> Result<Self> {
        Self::find(store)?.ok_or_else(|| Error::NotInitialised(store.directory().to_owned()))
    }

    fn find(store: &LocalStore) -> Result<Option<Self>> {
        let Some(IdentityRow { server, user, device, token, registration_key, signature_keys, next_signature_keys }) =
            store.identity()?
        else {
            return Ok(None);
        };
        let damaged = |error: keypool_openapi::InvalidId| Error::Damaged(error.to_string());
        let (user, device) = (user.try_into().map_err(damaged)?, device.try_into().map_err(damaged)?);
        let name = device_name(&user, &device);
        let signer = |(number, key): (u16, Vec<u8>)| {
            let ciphersuite = Ciphersuite::try_from(number)
                .map_err(|_| Error::Damaged(format!("the device has the ciphersuite {number}")))?;
            Ok((number, Arc::new(stored_signer(store, &key, ciphersuite, &name)?)))
        };
        let signers = signature_keys.into_iter().map(signer).collect::<Result<_>>()?;
        let next = next_signature_keys.into_iter().map(signer).collect::<Result<_>>()?;
        let secrets = RwLock::new(Secrets { token, signers, next });
        Ok(Some(Self { server, user, device, registration_key, secrets }))
    }

    /// Stores the bearer token from the registration.
    pub(crate) fn set_token(&mut self, store: &LocalStore, token: SecretString) -> Result<()> {
        self.replace_token(store, token)?;
        self.registration_key = None;
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
    pub fn token(&self) -> Option<SecretString> {
        self.secrets.read().token.clone()
    }

    /// Stores a bearer token that replaces the present one.
    pub(crate) fn replace_token(&self, store: &LocalStore, token: SecretString) -> Result<()> {
        store.set_token(&token)?;
        self.secrets.write().token = Some(token);
        Ok(())
    }

    /// The credential's identity, `user/device`.
    #[must_use]
    pub fn identity(&self) -> String {
        device_name(&self.user, &self.device)
    }

    /// The ciphersuites in which the device keeps a pool.
    #[must_use]
    pub fn ciphersuites(&self) -> Vec<Ciphersuite> {
        self.secrets.read().signers.keys().filter_map(|number| Ciphersuite::try_from(*number).ok()).collect()
    }

    /// The key pair that signs for a ciphersuite: the one in the server's directory.
    pub fn signer(&self, ciphersuite: Ciphersuite) -> Result<Arc<SignatureKeyPair>> {
        let secrets = self.secrets.read();
        secrets
            .signers
            .get(&u16::from(ciphersuite))
            .cloned()
            .ok_or_else(|| Error::MissingKeys(format!("{} in the ciphersuite {ciphersuite:?}", self.identity())))
    }

    /// The key pair that signs new KeyPackages of a ciphersuite: during a change of the signature key, the next one.
    pub(crate) fn key_package_key(&self, ciphersuite: Ciphersuite) -> Result<Arc<SignatureKeyPair>> {
        let next = self.secrets.read().next.get(&u16::from(ciphersuite)).cloned();
        next.map_or_else(|| self.signer(ciphersuite), Ok)
    }

    /// What signs new KeyPackages of a ciphersuite: during a change of the signature key, the next key.
    pub fn key_package_signer(&self, ciphersuite: Ciphersuite) -> Result<KeyPackageSigner> {
        let pair = self.key_package_key(ciphersuite)?;
        let credential = self.credential_with(&pair);
        let signer =
            PreparedSigner::new(pair).map_err(|error| Error::mls("read the signature key pair")(error.into()))?;
        Ok(KeyPackageSigner { ciphersuite, credential, signer: Arc::new(signer) })
    }

    /// The key pair of this device's leaf in a group. It may be older than [`Self::signer`].
    pub fn signer_in(&self, store: &LocalStore, group: &MlsGroup) -> Result<SignatureKeyPair> {
        let leaf =
            group.own_leaf_node().ok_or_else(|| Error::Damaged("a group has no leaf of this device".to_owned()))?;
        stored_signer(store, leaf.signature_key().as_slice(), group.ciphersuite(), &self.identity())
    }

    /// The credential with the public signature key of a ciphersuite, in OpenMLS's type.
    pub fn credential(&self, ciphersuite: Ciphersuite) -> Result<CredentialWithKey> {
        Ok(self.credential_with(&*self.signer(ciphersuite)?))
    }

    /// The credential with the public key of a given key pair.
    pub(crate) fn credential_with(&self, signer: &SignatureKeyPair) -> CredentialWithKey {
        CredentialWithKey {
            credential: BasicCredential::new(self.identity().into_bytes()).into(),
            signature_key: signer.to_public_vec().into(),
        }
    }
}

fn new_signer(store: &LocalStore, ciphersuite: Ciphersuite) -> Result<Arc<SignatureKeyPair>> {
    let signer = SignatureKeyPair::new(ciphersuite.signature_algorithm())
        .map_err(|error| Error::mls("generate a signature key pair")(error.into()))?;
    signer.store(store.provider().storage()).map_err(Error::storage("write the signature key pair"))?;
    Ok(Arc::new(signer))
}

fn stored_signer(store: &LocalStore, key: &[u8], ciphersuite: Ciphersuite, name: &str) -> Result<SignatureKeyPair> {
    SignatureKeyPair::read(store.provider().storage(), key, ciphersuite.signature_algorithm())
        .ok_or_else(|| Error::MissingKeys(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::CIPHERSUITE;

    const P256: Ciphersuite = Ciphersuite::MLS_128_DHKEMP256_AES128GCM_SHA256_P256;

    fn create(store: &LocalStore, server: &str, user: &str, device: &str) -> Result<DeviceIdentity> {
        DeviceIdentity::create(store, server, (&user.parse().unwrap(), &device.parse().unwrap()), &[CIPHERSUITE])
    }

    #[test]
    fn the_same_arguments_find_the_same_device_and_others_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let store = LocalStore::open(directory.path()).unwrap();
        assert!(matches!(DeviceIdentity::load(&store), Err(Error::NotInitialised(_))));
        let mut made = create(&store, "http://localhost:8080", "alice", "laptop").unwrap();
        let again = create(&store, "http://localhost:8080", "alice", "laptop").unwrap();
        assert!(made.registration_key.as_ref().is_some_and(|key| key.len() >= 32));
        assert_eq!(again.registration_key, made.registration_key);
        // As long as there is no token, any other device may be made instead.
        let other = create(&store, "http://localhost:8081", "bob", "phone").unwrap();
        assert_eq!((other.identity().as_str(), other.ciphersuites()), ("bob/phone", vec![CIPHERSUITE]));
        assert_ne!(other.registration_key, made.registration_key);
        assert_eq!(store.count("openmls_signature_keys"), 1, "the keys of the other one are deleted");
        made = create(&store, "http://localhost:8080", "alice", "laptop").unwrap();
        made.set_token(&store, "keypool_1".into()).unwrap();
        let found = create(&store, "http://localhost:8080/", "alice", "laptop").unwrap();
        assert_eq!(found.signer(CIPHERSUITE).unwrap().public(), made.signer(CIPHERSUITE).unwrap().public());
        assert!(found.token().is_some() && found.registration_key.is_none());
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

    #[test]
    fn a_further_ciphersuite_gets_a_key_of_its_own_and_the_first_keeps_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let store = LocalStore::open(directory.path()).unwrap();
        let first = create(&store, "http://localhost:8080", "alice", "laptop").unwrap();
        assert!(matches!(first.signer(P256), Err(Error::MissingKeys(_))));
        let names = (first.user(), first.device());
        let both = DeviceIdentity::create(&store, first.server(), names, &[CIPHERSUITE, P256]).unwrap();
        assert_eq!(both.ciphersuites(), [CIPHERSUITE, P256]);
        assert_eq!(both.signer(CIPHERSUITE).unwrap().public(), first.signer(CIPHERSUITE).unwrap().public());
        assert_eq!(both.signer(P256).unwrap().signature_scheme(), P256.signature_algorithm());
        assert_eq!(DeviceIdentity::load(&store).unwrap().ciphersuites(), [CIPHERSUITE, P256]);
    }
}
