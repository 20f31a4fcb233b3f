//! Parses and checks an uploaded KeyPackage. Every field of a [`ValidatedKeyPackage`] is read from the bytes.

use jiff::{SignedDuration, Timestamp};
use keypool_openapi::{DeviceName, KeyPackageRef, MAX_KEY_PACKAGE_SIZE, RejectionReason, UserName, device_name};
use keypool_transparency::key_package::KeyPackageFields;
use openmls::{
    grease::is_grease_value,
    prelude::{
        BasicCredential, Ciphersuite, CredentialType, Extension, ExtensionType, HpkeKemType, KeyPackage, KeyPackageIn,
        KeyPackageVerifyError, ProtocolVersion,
        tls_codec::{Deserialize, Serialize, VLBytes},
    },
};
use openmls_rust_crypto::RustCrypto;
use openmls_traits::crypto::OpenMlsCrypto;

/// The ciphersuites whose signatures can be checked (RFC 9420, section 17.1).
pub const KNOWN_CIPHERSUITES: [u16; 3] = [1, 2, 3];

/// The first bytes of an `MLSMessage` of version mls10 with the wire format `mls_key_package` (RFC 9420, section 6).
const HEADER: [u8; 4] = [0x00, 0x01, 0x00, 0x05];

/// The protocol version mls10 (RFC 9420, section 6).
const MLS10: u16 = 1;

/// A KeyPackage that RFC 9420 (section 10.1) and the operator's rules allow.
#[derive(Clone, Debug)]
pub struct ValidatedKeyPackage {
    /// Its ref (RFC 9420, section 5.2).
    pub keypackage_ref: KeyPackageRef,
    /// Its ciphersuite (RFC 9420, section 17.1).
    pub ciphersuite: u16,
    /// Its encoded init key.
    pub init_key: Vec<u8>,
    /// The encoded encryption key of its leaf node.
    pub encryption_key: Vec<u8>,
    /// The signature key of its leaf node: the public key, without its length.
    pub signature_key: Vec<u8>,
    /// When it expires.
    pub not_after: Timestamp,
    /// Whether it is marked as a last resort, in either form.
    pub last_resort: bool,
    /// The bytes of the `MLSMessage`, as they were uploaded.
    pub bytes: Vec<u8>,
}

/// The operator's rules for uploads.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The ciphersuites that the server accepts.
    pub ciphersuites: Vec<u16>,
    /// The longest time from `not_before` to `not_after`.
    pub max_lifetime: SignedDuration,
    /// How far `not_before` may be ahead of the server's clock.
    pub clock_tolerance: SignedDuration,
    /// Whether the credential has to name the owner.
    pub credential_binding: CredentialBinding,
}

/// Whether a KeyPackage's credential has to name its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CredentialBinding {
    /// The credential is basic, and its identity is the owner's `user/device`.
    Strict,
    /// Any credential is accepted: the application checks it.
    Off,
}

/// Why the server refuses a KeyPackage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// The broken rule.
    pub reason: RejectionReason,
    /// What is wrong, and what to do next.
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
    /// Parses and checks bytes, the cheapest check first.
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
            let detail =
                format!("The KeyPackage has {} bytes; at most {MAX_KEY_PACKAGE_SIZE} are allowed.", bytes.len());
            return Err(Rejection::new(RejectionReason::TooLarge, detail));
        }
        let ciphersuite = allowed_ciphersuite(&bytes, rules)?;
        let key_package = verify(&bytes)?;
        let not_after = check_lifetime(&key_package, rules, now)?;
        check_credential(&key_package, owner, rules)?;
        check_capabilities(&key_package)?;
        check_extensions(&key_package)?;
        check_keys(&key_package)?;
        // OpenMLS knows one of the two forms of last resorts.
        let logged = KeyPackageFields::parse(&bytes).map_err(|error| Rejection::malformed(format!("{error}.")))?;
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
            last_resort: logged.last_resort,
            bytes,
        })
    }
}

/// Reads the ciphersuite, which follows the headers of the message and of the KeyPackage. This comes first, since a
/// KeyPackage of an unknown ciphersuite cannot be decoded.
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
        let detail = format!("The server does not accept ciphersuite {suite}; it accepts {:?}.", rules.ciphersuites);
        return Err(Rejection::new(RejectionReason::UnsupportedCiphersuite, detail));
    }
    Ok(suite)
}

/// Decodes exactly these bytes: no bytes may trail, and the re-encoded KeyPackage has to equal them.
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
        return Err(Rejection::malformed("The encoding of the KeyPackage is not the one of RFC 9420."));
    }
    Ok(key_package)
}

/// The checks of OpenMLS: the leaf node's source, both signatures, distinct keys, the kinds of extensions.
///
/// OpenMLS checks the capabilities for the extensions and the lifetime last, after both signatures. Its answers about
/// these two do not count: it takes a GREASE extension for another type than the same code point in the capabilities
/// (RFC 9420, section 13.5), and it reads the system's clock. [`check_extensions`] and [`check_lifetime`] decide.
fn verify(bytes: &[u8]) -> Result<KeyPackage, Rejection> {
    use KeyPackageVerifyError as E;
    use RejectionReason as R;
    let error = match decode(bytes)?.validate(&RustCrypto::default(), ProtocolVersion::Mls10) {
        Ok(key_package) => return Ok(key_package),
        Err(E::UnsupportedExtension | E::LifetimeError(_)) => return Ok(decode(bytes)?.into_unchecked()),
        Err(error) => error,
    };
    let (reason, hint) = match &error {
        E::InvalidSignature | E::InvalidLeafNodeSignature => (R::InvalidSignature, "Sign it again."),
        E::ExtensionTypeNotValidInKeyPackage(_) => (R::UnsupportedExtension, "Leave it out."),
        E::InitKeyEqualsEncryptionKey => (R::InitKeyReused, "Generate a key for each."),
        _ => (R::Malformed, "See RFC 9420, section 10.1."),
    };
    Err(Rejection::new(reason, format!("{} {hint}", error.to_string().trim_end_matches('.').to_owned() + ".")))
}

/// Checks the lifetime by the server's clock, and its length, which OpenMLS leaves to the application (RFC 9420,
/// section 7.2).
fn check_lifetime(key_package: &KeyPackage, rules: &Rules, now: Timestamp) -> Result<Timestamp, Rejection> {
    let lifetime = key_package.life_time();
    let (begins, ends) = (lifetime.not_before(), lifetime.not_after());
    if ends <= begins {
        let detail = format!(
            "The lifetime ends before it begins: not_before is {begins} and not_after is {ends}, in seconds since 1970. \
             Set both."
        );
        return Err(Rejection::new(RejectionReason::LifetimeExpired, detail));
    }
    let second = |second: u64| i64::try_from(second).ok().and_then(|second| Timestamp::from_second(second).ok());
    let too_long = || {
        let detail = format!(
            "The lifetime has {} s, from not_before {begins} to not_after {ends}; at most {} s are allowed. Generate a \
             KeyPackage with a shorter one.",
            ends - begins,
            rules.max_lifetime.as_secs()
        );
        Rejection::new(RejectionReason::LifetimeTooLong, detail)
    };
    let not_before = second(begins).ok_or_else(too_long)?;
    let not_after = second(ends).ok_or_else(too_long)?;
    if not_after <= now {
        let detail = format!("The KeyPackage expired at {not_after}; the server's time is {now}. Generate a new one.");
        return Err(Rejection::new(RejectionReason::LifetimeExpired, detail));
    }
    if not_before.duration_since(now) > rules.clock_tolerance {
        let detail = format!(
            "The KeyPackage is valid from {not_before}, but the server's time is {now}. Check the device's clock, or \
             let the lifetime begin an hour earlier."
        );
        return Err(Rejection::new(RejectionReason::LifetimeNotYetValid, detail));
    }
    if not_after.duration_since(not_before) > rules.max_lifetime {
        return Err(too_long());
    }
    Ok(not_after)
}

/// Checks that the credential names the owner: the application's part of RFC 9420, section 5.3.1.
fn check_credential(
    key_package: &KeyPackage,
    (user, device): (&UserName, &DeviceName),
    rules: &Rules,
) -> Result<(), Rejection> {
    let credential = key_package.leaf_node().credential();
    if rules.credential_binding == CredentialBinding::Strict {
        let identity = BasicCredential::try_from(credential.clone()).ok();
        let own = device_name(user, device);
        if identity.is_none_or(|identity| identity.identity() != own.as_bytes()) {
            let detail = format!("The credential is not a basic one with the identity {own} of the uploading device.");
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

/// Checks that the leaf node supports the KeyPackage's version and ciphersuite. OpenMLS checks this only when the leaf
/// joins a group, too late for the adder.
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
                "The leaf node's capabilities do not list the KeyPackage's ciphersuite {}. List it there.",
                u16::from(suite)
            ),
        ));
    }
    Ok(())
}

/// Checks that the capabilities list the extensions of the KeyPackage and of its leaf node, by their code points.
/// OpenMLS checks the leaf node's only when the leaf joins a tree, too late for the adder.
fn check_extensions(key_package: &KeyPackage) -> Result<(), Rejection> {
    let leaf_node = key_package.leaf_node();
    let listed: Vec<u16> = leaf_node.capabilities().extensions().iter().map(|kind| u16::from(*kind)).collect();
    let in_leaf_node = leaf_node.extensions().iter().map(|extension| ("leaf node", extension));
    let in_key_package = key_package.extensions().iter().map(|extension| ("KeyPackage", extension));
    for (place, extension) in in_key_package.chain(in_leaf_node) {
        let kind = extension.extension_type();
        // Every client supports the application id (RFC 9420, section 7.2).
        if kind != ExtensionType::ApplicationId && !listed.contains(&kind.into()) {
            let detail = format!(
                "The {place} has {}, which the leaf node's capabilities do not list. List it there, or leave it out.",
                named(extension)
            );
            return Err(Rejection::new(RejectionReason::UnsupportedExtension, detail));
        }
    }
    Ok(())
}

/// An extension in words: its code point, and its name if it has one.
fn named(extension: &Extension) -> String {
    let kind = extension.extension_type();
    match u16::from(kind) {
        code if is_grease_value(code) => format!("the GREASE extension {code:#06x} (RFC 9420, section 13.5)"),
        code if matches!(kind, ExtensionType::Unknown(_)) => format!("the extension {code:#06x}"),
        code => format!("the extension {kind:?} ({code:#06x})"),
    }
}

/// Checks that both HPKE keys are valid. OpenMLS notices an invalid one only when an adder is adding the device.
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
                "The {name} is not a valid public key of its ciphersuite. Generate a new one."
            )));
        }
    }
    Ok(())
}

/// Any 32 bytes are an X25519 key except zero, which yields no shared secret (RFC 7748, section 6.1). Points of other
/// curves are tested by encrypting to them.
fn usable(suite: Ciphersuite, key: &[u8]) -> bool {
    match suite.hpke_kem_algorithm() {
        HpkeKemType::DhKem25519 => key.len() == 32 && key.iter().any(|byte| *byte != 0),
        _ => RustCrypto::default().hpke_seal(suite.hpke_config(), key, &[], &[], &[]).is_ok(),
    }
}

#[cfg(test)]
mod tests;
