use jiff::ToSpan;
use openmls::prelude::{
    Capabilities, CredentialWithKey, Extension, Extensions, Lifetime, MlsMessageOut, UnknownExtension,
};
use openmls_basic_credential::SignatureKeyPair;
use openmls_rust_crypto::OpenMlsRustCrypto;
use openmls_traits::signatures::Signer;
use rstest::rstest;

use super::*;

const SUITE: Ciphersuite = Ciphersuite::MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519;
const DAY: u64 = 86_400;
/// A varint of 64 and an Ed25519 signature.
const SIGNATURE: usize = 2 + 64;
/// Where the leaf node begins: headers, and a varint of 32 with an X25519 init key.
const LEAF: usize = 8 + 1 + 32;

struct Maker {
    provider: OpenMlsRustCrypto,
    signer: SignatureKeyPair,
    identity: &'static str,
    suite: Ciphersuite,
    lifetime: Lifetime,
    capabilities: Capabilities,
    extensions: Vec<Extension>,
    leaf_extensions: Vec<Extension>,
}

impl Maker {
    fn new() -> Self {
        Self::of(SUITE)
    }

    fn of(suite: Ciphersuite) -> Self {
        Self {
            provider: OpenMlsRustCrypto::default(),
            signer: SignatureKeyPair::new(suite.signature_algorithm()).unwrap(),
            identity: "alice/laptop",
            suite,
            lifetime: Lifetime::init(second() - 3_600, second() + 14 * DAY),
            capabilities: Capabilities::default(),
            extensions: Vec::new(),
            leaf_extensions: Vec::new(),
        }
    }

    fn builder_of(self, last_resort: bool) -> Vec<u8> {
        let credential = CredentialWithKey {
            credential: BasicCredential::new(self.identity.into()).into(),
            signature_key: self.signer.public().into(),
        };
        let mut builder = KeyPackage::builder()
            .key_package_lifetime(self.lifetime)
            .leaf_node_capabilities(self.capabilities)
            .key_package_extensions(Extensions::from_vec(self.extensions).unwrap())
            .leaf_node_extensions(Extensions::from_vec(self.leaf_extensions).unwrap());
        if last_resort {
            let capabilities = Capabilities::builder().extensions(vec![ExtensionType::LastResort]).build();
            builder = builder.leaf_node_capabilities(capabilities).mark_as_last_resort();
        }
        let bundle = builder.build(self.suite, &self.provider, &self.signer, credential).unwrap();
        MlsMessageOut::from(bundle.key_package().clone()).tls_serialize_detached().unwrap()
    }

    fn make(self) -> Vec<u8> {
        self.builder_of(false)
    }
}

#[expect(clippy::disallowed_methods, reason = "OpenMLS uses the system's clock, too")]
fn now() -> Timestamp {
    Timestamp::now()
}

fn second() -> u64 {
    now().as_second().try_into().unwrap()
}

fn rules() -> Rules {
    Rules {
        ciphersuites: vec![1, 3],
        max_lifetime: SignedDuration::from_hours(24 * 90),
        clock_tolerance: SignedDuration::from_secs(60),
        credential_binding: CredentialBinding::Strict,
    }
}

fn parse_at(bytes: Vec<u8>, rules: &Rules, now: Timestamp) -> Result<ValidatedKeyPackage, Rejection> {
    ValidatedKeyPackage::parse(bytes, (&"alice".parse().unwrap(), &"laptop".parse().unwrap()), rules, now)
}

fn parse(bytes: Vec<u8>) -> Result<ValidatedKeyPackage, Rejection> {
    parse_at(bytes, &rules(), now())
}

#[track_caller]
fn assert_rejected(bytes: Vec<u8>, reason: RejectionReason) {
    let rejection = parse(bytes).unwrap_err();
    assert_eq!(rejection.reason, reason, "{}", rejection.detail);
    assert!(rejection.detail.ends_with('.'), "{}", rejection.detail);
}

/// A signature over labelled content (RFC 9420, section 5.1.2), with its length in front.
fn sign(signer: &SignatureKeyPair, label: &str, content: &[u8]) -> Vec<u8> {
    let bytes = |bytes: &[u8]| VLBytes::from(bytes).tls_serialize_detached().unwrap();
    let content = [bytes(format!("MLS 1.0 {label}").as_bytes()), bytes(content)].concat();
    bytes(&signer.sign(&content).unwrap())
}

/// The leaf node of a KeyPackage without extensions is edited, and both signatures are made anew.
fn edit_leaf(package: &[u8], signer: &SignatureKeyPair, edit: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut leaf = package[LEAF..package.len() - 2 * SIGNATURE - 1].to_vec();
    edit(&mut leaf);
    let signature = sign(signer, "LeafNodeTBS", &leaf);
    let tbs = [&package[4..LEAF], &leaf, &signature, &[0]].concat();
    [&package[..4], &tbs, &sign(signer, "KeyPackageTBS", &tbs)].concat()
}

#[test]
fn what_openmls_makes_is_read_as_openmls_reads_it() {
    let bytes = Maker::new().make();
    let package = parse(bytes.clone()).unwrap();
    let own = verify(&bytes).unwrap();
    assert_eq!(package.keypackage_ref.as_bytes(), own.hash_ref(&RustCrypto::default()).unwrap().as_slice());
    assert_eq!((package.ciphersuite, package.last_resort), (1, false));
    assert_eq!(u64::try_from(package.not_after.as_second()).unwrap(), own.life_time().not_after());
    assert_eq!(package.init_key[1..], bytes[9..LEAF]);
    assert_eq!(package.encryption_key[1..], bytes[LEAF + 1..LEAF + 33]);
    assert_eq!(package.bytes, bytes);
    assert!(parse(Maker::new().builder_of(true)).unwrap().last_resort);
    let chacha = Ciphersuite::MLS_128_DHKEMX25519_CHACHA20POLY1305_SHA256_Ed25519;
    assert_eq!(parse(Maker::of(chacha).make()).unwrap().ciphersuite, 3);
}

/// The form of draft-ietf-mls-extensions, which OpenMLS knows as an unknown extension.
#[rstest]
#[case::marked(&[3, 0, 4, 0], Some(true))]
#[case::of_another_component(&[3, 0, 5, 0], Some(false))]
#[case::with_data(&[4, 0, 4, 1, 1], None)]
fn a_component_marks_a_last_resort(#[case] dictionary: &[u8], #[case] expected: Option<bool>) {
    let extension = Extension::Unknown(6, UnknownExtension(dictionary.to_vec()));
    let listed = Capabilities::builder().extensions(vec![ExtensionType::Unknown(6)]).build();
    let made = |capabilities| Maker { capabilities, extensions: vec![extension.clone()], ..Maker::new() }.make();
    match expected {
        Some(expected) => assert_eq!(parse(made(listed)).unwrap().last_resort, expected),
        None => assert_rejected(made(listed), RejectionReason::Malformed),
    }
    assert_rejected(made(Capabilities::default()), RejectionReason::UnsupportedExtension);
}

/// Signing again is how the tests below give bad content good signatures; so it has to give good content good ones.
#[test]
fn signed_again_unchanged_it_passes() {
    let signer = SignatureKeyPair::new(SUITE.signature_algorithm()).unwrap();
    let bytes = Maker { signer: clone(&signer), ..Maker::new() }.make();
    let again = edit_leaf(&bytes, &signer, |_| ());
    assert_eq!(parse(again).unwrap().init_key, parse(bytes).unwrap().init_key);
}

fn clone(signer: &SignatureKeyPair) -> SignatureKeyPair {
    SignatureKeyPair::tls_deserialize(&mut signer.tls_serialize_detached().unwrap().as_slice()).unwrap()
}

#[test]
fn any_byte_changed_is_rejected_for_what_it_breaks() {
    use RejectionReason as R;
    let bytes = Maker::new().make();
    let (suite, end) = (6..8, bytes.len());
    for (index, flip) in (0..end).flat_map(|index| [0x01, 0x80, 0xff].map(|flip| (index, flip))) {
        let mut changed = bytes.clone();
        changed[index] ^= flip;
        let reason = parse(changed).expect_err("a changed KeyPackage was accepted").reason;
        let expected: &[R] = if index < 6 {
            &[R::Malformed]
        } else if suite.contains(&index) {
            // Another ciphersuite that is allowed has other labels and hashes: the signature is over other content.
            &[R::UnsupportedCiphersuite, R::InvalidSignature]
        } else if (9..LEAF).contains(&index) || end - index <= 64 {
            &[R::InvalidSignature]
        } else {
            &[R::InvalidSignature, R::Malformed]
        };
        assert!(expected.contains(&reason), "byte {index} ^ {flip:#x}: {reason}");
    }
}

#[test]
fn other_encodings_of_the_same_are_malformed() {
    let bytes = Maker::new().make();
    for length in 0..bytes.len() {
        assert_rejected(bytes[..length].to_vec(), RejectionReason::Malformed);
    }
    assert_rejected([bytes.as_slice(), &[0]].concat(), RejectionReason::Malformed);
    // The init key's length in two bytes where one is enough (RFC 9420, section 2.1.2).
    assert_rejected([&bytes[..8], &[0x40, 0x20], &bytes[9..]].concat(), RejectionReason::Malformed);
    // A KeyPackage without the message around it.
    assert_rejected(bytes[4..].to_vec(), RejectionReason::Malformed);
}

#[test]
fn too_large_is_said_before_anything_is_read() {
    assert_rejected(vec![0; MAX_KEY_PACKAGE_SIZE + 1], RejectionReason::TooLarge);
    assert_rejected(vec![0; MAX_KEY_PACKAGE_SIZE], RejectionReason::Malformed);
}

#[test]
fn a_ciphersuite_that_is_not_taken_is_named_known_or_not() {
    let p256 = Maker::of(Ciphersuite::MLS_128_DHKEMP256_AES128GCM_SHA256_P256).make();
    assert_rejected(p256.clone(), RejectionReason::UnsupportedCiphersuite);
    let all = Rules { ciphersuites: vec![1, 2, 3], ..rules() };
    assert_eq!(parse_at(p256, &all, now()).unwrap().ciphersuite, 2);
    let mut unknown = Maker::new().make();
    unknown[6..8].copy_from_slice(&[0xf0, 0x0f]);
    assert_rejected(unknown, RejectionReason::UnsupportedCiphersuite);
}

#[test]
fn a_foreign_identity_is_refused_unless_the_operator_lets_it_in() {
    let foreign = Maker { identity: "alice/phone", ..Maker::new() }.make();
    assert_rejected(foreign.clone(), RejectionReason::CredentialMismatch);
    let off = Rules { credential_binding: CredentialBinding::Off, ..rules() };
    parse_at(foreign, &off, now()).unwrap();
}

#[rstest]
#[case::over(-30, -1, RejectionReason::LifetimeExpired)]
#[case::not_begun(1, 14, RejectionReason::LifetimeNotYetValid)]
#[case::too_long(-1, 90, RejectionReason::LifetimeTooLong)]
fn lifetimes_are_judged(#[case] from: i64, #[case] to: i64, #[case] reason: RejectionReason) {
    let day = |day: i64| second().checked_add_signed(day * 86_400).unwrap();
    assert_rejected(Maker { lifetime: Lifetime::init(day(from), day(to)), ..Maker::new() }.make(), reason);
}

#[test]
fn a_lifetime_may_begin_as_far_ahead_as_clocks_are_apart() {
    let begins = now().checked_add(1.hour()).unwrap();
    let (begin, end) = (u64::try_from(begins.as_second()).unwrap(), second() + 14 * DAY);
    let bytes = Maker { lifetime: Lifetime::init(begin, end), ..Maker::new() }.make();
    let ahead_by = |seconds: i64| {
        let now = Timestamp::from_second(begins.as_second() - seconds).unwrap();
        parse_at(bytes.clone(), &rules(), now).map_err(|rejection| rejection.reason)
    };
    assert!(ahead_by(2).is_ok());
    assert!(ahead_by(60).is_ok());
    assert_eq!(ahead_by(61).unwrap_err(), RejectionReason::LifetimeNotYetValid);
}

#[rstest]
#[case::unset(0, 0)]
#[case::no_end(1_900_000_000, 0)]
#[case::turned_round(1_900_000_000, 1_800_000_000)]
fn a_lifetime_that_ends_before_it_begins_is_not_blamed_on_the_clock(#[case] from: u64, #[case] to: u64) {
    let rejection = parse(Maker { lifetime: Lifetime::init(from, to), ..Maker::new() }.make()).unwrap_err();
    assert_eq!(rejection.reason, RejectionReason::LifetimeExpired);
    let values = format!("not_before is {from} and not_after is {to}");
    assert!(rejection.detail.contains(&values) && !rejection.detail.contains("clock"), "{}", rejection.detail);
}

#[test]
fn a_lifetime_past_the_end_of_time_is_too_long() {
    let endless = Lifetime::init(second(), u64::MAX);
    assert_rejected(Maker { lifetime: endless, ..Maker::new() }.make(), RejectionReason::LifetimeTooLong);
}

#[test]
fn the_clock_that_counts_is_the_servers() {
    let bytes = Maker::new().make();
    let at = |span: jiff::Span| parse_at(bytes.clone(), &rules(), now().checked_add(span).unwrap());
    assert!(at((13 * 24).hours()).is_ok());
    assert_eq!(at((14 * 24).hours()).unwrap_err().reason, RejectionReason::LifetimeExpired);
    assert_eq!(at((-2).hours()).unwrap_err().reason, RejectionReason::LifetimeNotYetValid);
}

#[test]
fn a_credential_that_the_leaf_does_not_list_is_refused() {
    let capabilities = Capabilities::builder().credentials(vec![CredentialType::Other(0xf0f0)]).build();
    assert_rejected(Maker { capabilities, ..Maker::new() }.make(), RejectionReason::UnsupportedCredential);
}

#[test]
fn a_leaf_that_does_not_list_what_its_key_package_is_of_is_refused() {
    let with = |capabilities| Maker { capabilities, ..Maker::new() }.make();
    let others = vec![Ciphersuite::MLS_128_DHKEMP256_AES128GCM_SHA256_P256];
    assert_rejected(
        with(Capabilities::builder().ciphersuites(others).build()),
        RejectionReason::UnsupportedCiphersuite,
    );
    parse(with(Capabilities::builder().ciphersuites(vec![SUITE]).build())).unwrap();
    let drafts = vec![ProtocolVersion::Other(0xf001)];
    assert_rejected(with(Capabilities::builder().versions(drafts).build()), RejectionReason::Malformed);
}

#[test]
fn an_extension_that_the_leaf_does_not_list_is_refused() {
    let unknown = || vec![Extension::Unknown(0xf001, UnknownExtension(vec![1]))];
    let listed = || Capabilities::builder().extensions(vec![ExtensionType::Unknown(0xf001)]).build();
    assert_rejected(Maker { extensions: unknown(), ..Maker::new() }.make(), RejectionReason::UnsupportedExtension);
    parse(Maker { extensions: unknown(), capabilities: listed(), ..Maker::new() }.make()).unwrap();
    assert_rejected(Maker { leaf_extensions: unknown(), ..Maker::new() }.make(), RejectionReason::UnsupportedExtension);
    parse(Maker { leaf_extensions: unknown(), capabilities: listed(), ..Maker::new() }.make()).unwrap();
}

#[rstest]
fn a_grease_extension_is_taken_where_the_leaf_lists_it(
    #[values(0x0a0a, 0x4a4a, 0x8a8a, 0xeaea)] code: u16,
    #[values(true, false)] in_leaf_node: bool,
) {
    let make = |listed: Vec<ExtensionType>| {
        let grease = vec![Extension::Unknown(code, UnknownExtension(vec![1, 2]))];
        let (leaf_extensions, extensions) = if in_leaf_node { (grease, Vec::new()) } else { (Vec::new(), grease) };
        let capabilities = Capabilities::builder().extensions(listed).build();
        Maker { capabilities, extensions, leaf_extensions, ..Maker::new() }.make()
    };
    let bytes = make(vec![ExtensionType::Grease(code)]);
    let package = parse(bytes.clone()).unwrap();
    assert_eq!(package.bytes, bytes);
    // The same code point under its other name; and another GREASE value, which does not stand for this one.
    parse(make(vec![ExtensionType::Unknown(code)])).unwrap();
    for listed in [vec![], vec![ExtensionType::Grease(0x1a1a)]] {
        let rejection = parse(make(listed)).unwrap_err();
        assert_eq!(rejection.reason, RejectionReason::UnsupportedExtension);
        assert!(rejection.detail.contains(&format!("GREASE extension {code:#06x}")), "{}", rejection.detail);
    }
}

/// OpenMLS's answers about extensions and lifetimes do not count, so neither may hide a wrong signature.
#[test]
fn what_openmls_refuses_last_is_still_checked_for_its_signatures() {
    let grease = || vec![Extension::Unknown(0x8a8a, UnknownExtension(vec![1]))];
    let listed = Capabilities::builder().extensions(vec![ExtensionType::Grease(0x8a8a)]).build();
    let with_grease = Maker { extensions: grease(), capabilities: listed, ..Maker::new() }.make();
    let expired = Maker { lifetime: Lifetime::init(second() - 2 * DAY, second() - DAY), ..Maker::new() }.make();
    // The length of the KeyPackage's extensions, which are between the signatures.
    for (mut bytes, extensions) in [(with_grease, 1 + 4), (expired, 1)] {
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        assert_rejected(bytes.clone(), RejectionReason::InvalidSignature);
        bytes[last] ^= 1;
        bytes[last - SIGNATURE - extensions] ^= 1;
        assert_rejected(bytes, RejectionReason::InvalidSignature);
    }
}

#[test]
fn one_key_for_two_purposes_is_reuse() {
    let signer = SignatureKeyPair::new(SUITE.signature_algorithm()).unwrap();
    let bytes = Maker { signer: clone(&signer), ..Maker::new() }.make();
    let reused = edit_leaf(&bytes, &signer, |leaf| leaf[1..33].copy_from_slice(&bytes[9..LEAF]));
    assert_rejected(reused, RejectionReason::InitKeyReused);
}

#[test]
fn keys_that_nobody_can_encrypt_to_are_malformed() {
    let signer = SignatureKeyPair::new(SUITE.signature_algorithm()).unwrap();
    let bytes = Maker { signer: clone(&signer), ..Maker::new() }.make();
    let short = |leaf: &mut Vec<u8>| drop(leaf.splice(..33, [5, 1, 2, 3, 4, 5]));
    let zero = |leaf: &mut Vec<u8>| leaf[1..33].fill(0);
    assert_rejected(edit_leaf(&bytes, &signer, short), RejectionReason::Malformed);
    assert_rejected(edit_leaf(&bytes, &signer, zero), RejectionReason::Malformed);
    let mut init = bytes.clone();
    init[9..LEAF].fill(0);
    assert_rejected(edit_leaf(&init, &signer, |_| ()), RejectionReason::Malformed);
    let p256 = Ciphersuite::MLS_128_DHKEMP256_AES128GCM_SHA256_P256;
    let package = Maker::of(p256).make();
    // Behind the headers, and a varint of 65 that takes two bytes, an uncompressed point.
    let point = &package[10..75];
    assert!(usable(p256, point));
    let mut off_the_curve = point.to_vec();
    off_the_curve[64] ^= 1;
    assert!(!usable(p256, &off_the_curve));
    assert!(!usable(p256, &point[..64]));
}
