//! From bytes to a [`ValidatedKeyPackage`]: nothing past this line sees raw bytes, and nothing declared is trusted.

use jiff::{SignedDuration, Timestamp};
use keypool_openapi::{DeviceName, KeyPackageRef, MAX_KEY_PACKAGE_SIZE, RejectionReason, UserName};
use openmls::prelude::{
    BasicCredential, Ciphersuite, CredentialType, ExtensionType, HpkeKemType, KeyPackage, KeyPackageIn,
    KeyPackageVerifyError, ProtocolVersion,
    tls_codec::{Deserialize, Serialize, VLBytes},
};
use openmls::treesync::errors::LifetimeError;
use openmls_rust_crypto::RustCrypto;
use openmls_traits::crypto::OpenMlsCrypto;

/// The ciphersuites whose signatures can be checked (RFC 9420, section 17.1).
pub const KNOWN_CIPHERSUITES: [u16; 3] = [1, 2, 3];

/// How an `MLSMessage` of version mls10 with the wire format `mls_key_package` begins (RFC 9420, section 6).
const HEADER: [u8; 4] = [0x00, 0x01, 0x00, 0x05];

/// The protocol version mls10 (RFC 9420, section 6).
const MLS10: u16 = 1;

/// A KeyPackage that RFC 9420 (section 10.1) and the operator's rules allow. All of it is read from its bytes.
#[derive(Clone, Debug)]
pub struct ValidatedKeyPackage {
    /// Its ref (RFC 9420, section 5.2).
    pub keypackage_ref: KeyPackageRef,
    /// Its ciphersuite (RFC 9420, section 17.1).
    pub ciphersuite: u16,
    /// Its init key as it is encoded.
    pub init_key: Vec<u8>,
    /// The encryption key of its leaf node as it is encoded.
    pub encryption_key: Vec<u8>,
    /// The signature key of its leaf node: the public key alone, without a length.
    pub signature_key: Vec<u8>,
    /// When it expires.
    pub not_after: Timestamp,
    /// Whether it carries the last-resort extension.
    pub last_resort: bool,
    /// The `MLSMessage`, to the byte as it came.
    pub bytes: Vec<u8>,
}

/// The operator's rules for uploads.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The ciphersuites that are taken.
    pub ciphersuites: Vec<u16>,
    /// The longest from `not_before` to `not_after`.
    pub max_lifetime: SignedDuration,
    /// Whether the credential has to be the uploader's.
    pub credential_binding: CredentialBinding,
}

/// Whether a KeyPackage's credential has to name its uploader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CredentialBinding {
    /// The credential is basic, and its identity is `user/device` of the uploader.
    Strict,
    /// Any credential: the application checks it.
    Off,
}

/// Why bytes are no KeyPackage for the pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// Which rule they break.
    pub reason: RejectionReason,
    /// How, and what to do next.
    pub detail: String,
}

impl Rejection {
    fn new(reason: RejectionReason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }

    fn malformed(detail: impl Into<String>) -> Self {
        Self::new(RejectionReason::Malformed, detail)
    }
}

impl ValidatedKeyPackage {
    /// Judges bytes, the cheapest check first.
    ///
    /// # Errors
    /// The first rule that the bytes break.
    pub fn parse(
        bytes: Vec<u8>,
        owner: (&UserName, &DeviceName),
        rules: &Rules,
        now: Timestamp,
    ) -> Result<Self, Rejection> {
        if bytes.len() > MAX_KEY_PACKAGE_SIZE {
            let detail = format!("The KeyPackage has {} bytes; {MAX_KEY_PACKAGE_SIZE} are allowed.", bytes.len());
            return Err(Rejection::new(RejectionReason::TooLarge, detail));
        }
        let ciphersuite = allowed_ciphersuite(&bytes, rules)?;
        let key_package = verify(decode(&bytes)?)?;
        let not_after = check_lifetime(&key_package, rules, now)?;
        check_credential(&key_package, owner, rules)?;
        check_capabilities(&key_package)?;
        check_leaf_extensions(&key_package)?;
        check_keys(&key_package)?;
        let internal = |_| Rejection::malformed("The KeyPackage cannot be encoded again.");
        let hash = key_package
            .hash_ref(&RustCrypto::default())
            .map_err(|_| Rejection::malformed("The KeyPackage has no ref: it cannot be hashed."))?;
        Ok(Self {
            keypackage_ref: hash.as_slice().to_vec().into(),
            ciphersuite,
            init_key: key_package.hpke_init_key().tls_serialize_detached().map_err(internal)?,
            encryption_key: key_package.leaf_node().encryption_key().tls_serialize_detached().map_err(internal)?,
            signature_key: key_package.leaf_node().signature_key().as_slice().to_vec(),
            not_after,
            last_resort: key_package.last_resort(),
            bytes,
        })
    }
}

/// The ciphersuite, which stands behind the headers of the message and of the KeyPackage. It is read before all else,
/// since a KeyPackage of a ciphersuite that is not known cannot be decoded.
fn allowed_ciphersuite(bytes: &[u8], rules: &Rules) -> Result<u16, Rejection> {
    let [header @ .., version_high, version_low, suite_high, suite_low] = bytes
        .first_chunk::<8>()
        .ok_or_else(|| Rejection::malformed("The bytes are too few for an MLSMessage with a KeyPackage."))?;
    if *header != HEADER {
        return Err(Rejection::malformed(
            "The bytes are no MLSMessage of version mls10 that wraps a KeyPackage (RFC 9420, section 6).",
        ));
    }
    let version = u16::from_be_bytes([*version_high, *version_low]);
    if version != MLS10 {
        return Err(Rejection::malformed(format!("The KeyPackage is of protocol version {version}, not mls10.")));
    }
    let suite = u16::from_be_bytes([*suite_high, *suite_low]);
    if !rules.ciphersuites.contains(&suite) {
        let detail = format!("Ciphersuite {suite} is not taken here; these are: {:?}.", rules.ciphersuites);
        return Err(Rejection::new(RejectionReason::UnsupportedCiphersuite, detail));
    }
    Ok(suite)
}

/// Decodes exactly these bytes: nothing may trail, and encoding again has to give the same.
fn decode(bytes: &[u8]) -> Result<KeyPackageIn, Rejection> {
    let body = &bytes[HEADER.len()..];
    let mut rest = body;
    // Not `tls_deserialize_exact_bytes`, which panics on truncated vectors in builds with debug assertions.
    let key_package = KeyPackageIn::tls_deserialize(&mut rest)
        .map_err(|error| Rejection::malformed(format!("The KeyPackage cannot be decoded: {error}.")))?;
    if !rest.is_empty() {
        return Err(Rejection::malformed(format!("{} bytes trail the KeyPackage.", rest.len())));
    }
    if key_package.tls_serialize_detached().ok().as_deref() != Some(body) {
        return Err(Rejection::malformed("The KeyPackage is not encoded as RFC 9420 encodes it."));
    }
    Ok(key_package)
}

/// What OpenMLS checks: both signatures, the leaf node's source, distinct keys, the extensions, the time.
fn verify(key_package: KeyPackageIn) -> Result<KeyPackage, Rejection> {
    use KeyPackageVerifyError as E;
    use RejectionReason as R;
    key_package.validate(&RustCrypto::default(), ProtocolVersion::Mls10).map_err(|error| {
        let (reason, hint) = match &error {
            E::InvalidSignature | E::InvalidLeafNodeSignature => (R::InvalidSignature, "Sign it again."),
            E::UnsupportedExtension | E::ExtensionTypeNotValidInKeyPackage(_) => {
                (R::UnsupportedExtension, "List it among the leaf node's capabilities, or leave it out.")
            }
            E::InitKeyEqualsEncryptionKey => (R::InitKeyReused, "Generate a key for each."),
            E::LifetimeError(LifetimeError::NotValidYet { .. }) => {
                (R::LifetimeNotYetValid, "Check the device's clock.")
            }
            E::LifetimeError(_) => (R::LifetimeExpired, "Generate a new one."),
            _ => (R::Malformed, "See RFC 9420, section 10.1."),
        };
        Rejection::new(reason, format!("{} {hint}", error.to_string().trim_end_matches('.').to_owned() + "."))
    })
}

/// The lifetime by our own clock, and its width, which OpenMLS leaves to the application (RFC 9420, section 7.2).
fn check_lifetime(key_package: &KeyPackage, rules: &Rules, now: Timestamp) -> Result<Timestamp, Rejection> {
    let lifetime = key_package.life_time();
    let second = |second: u64| i64::try_from(second).ok().and_then(|second| Timestamp::from_second(second).ok());
    let too_long = || {
        let most = rules.max_lifetime.as_hours() / 24;
        let detail = format!("The lifetime is longer than the {most} days that are allowed. Generate a shorter one.");
        Rejection::new(RejectionReason::LifetimeTooLong, detail)
    };
    let not_before = second(lifetime.not_before()).ok_or_else(too_long)?;
    let not_after = second(lifetime.not_after()).ok_or_else(too_long)?;
    if not_after <= now {
        let detail = format!("The KeyPackage expired at {not_after}. Generate a new one.");
        return Err(Rejection::new(RejectionReason::LifetimeExpired, detail));
    }
    if not_before > now {
        let detail =
            format!("The KeyPackage is valid from {not_before}, and it is {now} here. Check the device's clock.");
        return Err(Rejection::new(RejectionReason::LifetimeNotYetValid, detail));
    }
    if not_after.duration_since(not_before) > rules.max_lifetime {
        return Err(too_long());
    }
    Ok(not_after)
}

/// Whose it is: the application's part of RFC 9420, section 5.3.1.
fn check_credential(
    key_package: &KeyPackage,
    (user, device): (&UserName, &DeviceName),
    rules: &Rules,
) -> Result<(), Rejection> {
    let credential = key_package.leaf_node().credential();
    if rules.credential_binding == CredentialBinding::Strict {
        let identity = BasicCredential::try_from(credential.clone()).ok();
        let own = format!("{user}/{device}");
        if identity.is_none_or(|identity| identity.identity() != own.as_bytes()) {
            let detail = format!("The credential is not a basic one with the identity {own}, which the uploader has.");
            return Err(Rejection::new(RejectionReason::CredentialMismatch, detail));
        }
    }
    let kind: CredentialType = credential.credential_type();
    if !key_package.leaf_node().capabilities().credentials().contains(&kind) {
        let detail =
            format!("The credential's type {kind:?} is not among the capabilities of the leaf node. List it there.");
        return Err(Rejection::new(RejectionReason::UnsupportedCredential, detail));
    }
    Ok(())
}

/// That the device can do what its KeyPackage is of, which OpenMLS checks when the leaf joins a group: too late for an inviter.
fn check_capabilities(key_package: &KeyPackage) -> Result<(), Rejection> {
    let (capabilities, suite) = (key_package.leaf_node().capabilities(), key_package.ciphersuite());
    if !capabilities.versions().contains(&ProtocolVersion::Mls10) {
        return Err(Rejection::malformed(
            "The leaf node's capabilities do not list the protocol version mls10. List it there.",
        ));
    }
    if !capabilities.ciphersuites().contains(&suite.into()) {
        return Err(Rejection::new(
            RejectionReason::UnsupportedCiphersuite,
            format!(
                "The KeyPackage is of ciphersuite {}, which the leaf node's capabilities do not list. List it there.",
                u16::from(suite)
            ),
        ));
    }
    Ok(())
}

/// The leaf node's own extensions, which OpenMLS checks when the leaf joins a tree: too late for an inviter. The
/// application id is every client's to know (RFC 9420, section 7.2).
fn check_leaf_extensions(key_package: &KeyPackage) -> Result<(), Rejection> {
    let leaf_node = key_package.leaf_node();
    let listed = leaf_node.capabilities().extensions();
    let unlisted = leaf_node
        .extensions()
        .iter()
        .map(openmls::prelude::Extension::extension_type)
        .find(|kind| *kind != ExtensionType::ApplicationId && !listed.contains(kind));
    match unlisted {
        None => Ok(()),
        Some(kind) => Err(Rejection::new(
            RejectionReason::UnsupportedExtension,
            format!("The leaf node has the extension {kind:?}, which its capabilities do not list. List it there."),
        )),
    }
}

/// Both HPKE keys can be encrypted to, which OpenMLS finds out when somebody is already adding the device.
fn check_keys(key_package: &KeyPackage) -> Result<(), Rejection> {
    let leaf_key = key_package.leaf_node().encryption_key().tls_serialize_detached();
    let leaf_key = leaf_key
        .ok()
        .and_then(|key| VLBytes::tls_deserialize(&mut key.as_slice()).ok())
        .unwrap_or_else(|| Vec::new().into());
    let suite = key_package.ciphersuite();
    let keys = [(key_package.hpke_init_key().as_slice(), "init key"), (leaf_key.as_slice(), "encryption key")];
    for (key, name) in keys {
        if !usable(suite, key) {
            return Err(Rejection::malformed(format!(
                "The {name} is no public key of its ciphersuite. Generate a new one."
            )));
        }
    }
    Ok(())
}

/// Any 32 bytes are an X25519 key, but nobody agrees on a secret with zero (RFC 7748, section 6.1). Other groups' points
/// are tried out.
fn usable(suite: Ciphersuite, key: &[u8]) -> bool {
    match suite.hpke_kem_algorithm() {
        HpkeKemType::DhKem25519 => key.len() == 32 && key.iter().any(|byte| *byte != 0),
        _ => RustCrypto::default().hpke_seal(suite.hpke_config(), key, &[], &[], &[]).is_ok(),
    }
}

#[cfg(test)]
mod tests;
