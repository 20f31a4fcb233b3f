//! KeyPackages with which people try the server in Swagger UI. Nobody has their private keys.

use ed25519_dalek::SigningKey;
use hmac::{Hmac, KeyInit, Mac};
use keypool_openapi::{ProblemType, UploadRequest};
use openmls::prelude::{
    BasicCredential, Ciphersuite, CredentialWithKey, KeyPackage, Lifetime, MlsMessageOut, SignatureScheme,
    tls_codec::Serialize,
};
use openmls_basic_credential::SignatureKeyPair;
use openmls_rust_crypto::OpenMlsRustCrypto;
use sha2::Sha256;

use super::Service;
use crate::{
    caller::Caller,
    config::Registration,
    problem::Failure,
    store::{DeviceRow, ServerKey, StoreError},
};

/// How many KeyPackages one call makes.
const COUNT: usize = 2;

const CIPHERSUITE: Ciphersuite = Ciphersuite::MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519;

/// The time before and after now in which such a KeyPackage is valid, in seconds.
const BEFORE: u64 = 60 * 60;
const AFTER: u64 = 24 * 60 * 60;

impl Service {
    /// Makes KeyPackages of the caller, as the body of an upload. Each call makes new ones, with the same signature key.
    /// A device that has uploaded KeyPackages of its own has another signature key, so the server refuses these.
    pub(crate) async fn example_upload(&self, caller: Caller) -> Result<UploadRequest, Failure> {
        if self.policy.registration != Registration::Open {
            let detail = "Examples are made where registration is open. Upload KeyPackages of your own client.";
            return Err(Failure::new(ProblemType::NotFound, detail));
        }
        self.block(move |service, now| {
            let signer = signer(&service.store.server_key(ServerKey::Examples)?, &caller.device)?;
            let now = u64::try_from(now.as_second()).unwrap_or(0);
            let lifetime = Lifetime::init(now.saturating_sub(BEFORE), now.saturating_add(AFTER));
            let packages = (0..COUNT).map(|_| key_package(&signer, &caller.device, lifetime));
            packages.collect::<anyhow::Result<_>>().map(UploadRequest::of).map_err(|error| {
                tracing::error!(%error, "an example KeyPackage cannot be made");
                Failure::new(ProblemType::Internal, "An example KeyPackage cannot be made; the server's log says why.")
            })
        })
        .await
    }
}

/// The signature key of a device's examples. It is the same in each call, since a device may have only one.
fn signer(server_key: &[u8], device: &DeviceRow) -> Result<SignatureKeyPair, StoreError> {
    let mut mac = Hmac::<Sha256>::new_from_slice(server_key).map_err(StoreError::fatal)?;
    mac.update(&device.id.0.to_be_bytes());
    mac.update(&device.registered_at.as_second().to_be_bytes());
    let secret = SigningKey::from_bytes(&mac.finalize().into_bytes().into());
    let (private, public) = (secret.to_bytes().to_vec(), secret.verifying_key().to_bytes().to_vec());
    Ok(SignatureKeyPair::from_raw(SignatureScheme::ED25519, private, public))
}

fn key_package(signer: &SignatureKeyPair, device: &DeviceRow, lifetime: Lifetime) -> anyhow::Result<String> {
    let identity = format!("{}/{}", device.user, device.device);
    let credential = CredentialWithKey {
        credential: BasicCredential::new(identity.into_bytes()).into(),
        signature_key: signer.public().into(),
    };
    // The provider keeps the private keys in memory, and is dropped with them.
    let bundle = KeyPackage::builder().key_package_lifetime(lifetime).build(
        CIPHERSUITE,
        &OpenMlsRustCrypto::default(),
        signer,
        credential,
    )?;
    let bytes = MlsMessageOut::from(bundle.into_key_package()).tls_serialize_detached()?;
    Ok(keypool_openapi::Base64Bytes(bytes).encode())
}
