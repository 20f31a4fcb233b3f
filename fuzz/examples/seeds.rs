//! Writes the seeds of all targets. HPKE keys and ciphertexts differ from run to run.

use std::{error::Error, fs, path::Path};

use base64::{Engine, engine::general_purpose::STANDARD};
use keypool_fuzz::{IDENTITY, NOT_AFTER, NOT_BEFORE, parse, resign, rules, signer};
use keypool_openapi::RejectionReason as R;
use keypool_validation::mls_message::{Header, header};
use openmls::prelude::{
    BasicCredential, Capabilities, Ciphersuite, CredentialWithKey, Extension, ExtensionType, Extensions, GroupId,
    KeyPackage, KeyPackageBuilder, Lifetime, MlsGroup, MlsMessageOut, PURE_CIPHERTEXT_WIRE_FORMAT_POLICY,
    PURE_PLAINTEXT_WIRE_FORMAT_POLICY, UnknownExtension, WireFormatPolicy, tls_codec::Serialize,
};
use openmls_basic_credential::SignatureKeyPair;
use openmls_rust_crypto::OpenMlsRustCrypto;
use serde_json::Value;

type Fallible<T> = Result<T, Box<dyn Error>>;

/// Headers, and a varint of 32 with an X25519 init key; the leaf node's encryption key follows in the same encoding.
const INIT_KEY: std::ops::Range<usize> = 8..8 + 33;
const ENCRYPTION_KEY: std::ops::Range<usize> = INIT_KEY.end..INIT_KEY.end + 33;

/// An extension that the server does not know.
const UNKNOWN: u16 = 0xf001;

const SUITE: Ciphersuite = Ciphersuite::MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519;

fn main() -> Fallible<()> {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds");
    write_key_packages(&seeds.join("key_package"))?;
    write_mls_messages(&seeds.join("mls_message"))?;
    write_token_headers(&seeds.join("token_header"))?;
    write_parts_of_the_log(&seeds)
}

fn write_key_packages(folder: &Path) -> Fallible<()> {
    fs::create_dir_all(folder)?;
    for (name, bytes, expected) in key_packages()? {
        let verdict = parse(&bytes, &rules()).map(drop).map_err(|rejection| rejection.reason);
        assert_eq!(verdict, expected, "what the server says to {name}");
        fs::write(folder.join(name), bytes)?;
    }
    Ok(())
}

/// Each seed with the server's expected answer.
fn key_packages() -> Fallible<Vec<(&'static str, Vec<u8>, Result<(), R>)>> {
    use Ciphersuite as C;
    let plain = |suite| make(suite, IDENTITY, |builder| builder);
    let good = plain(SUITE)?;
    let last_resort = make(SUITE, IDENTITY, |builder| {
        builder.leaf_node_capabilities(listing(ExtensionType::LastResort)).mark_as_last_resort()
    })?;
    let (package_extensions, leaf_extensions) = (Extensions::single(unknown())?, Extensions::single(unknown())?);
    let unlisted = make(SUITE, IDENTITY, |builder| builder.leaf_node_extensions(leaf_extensions.clone()))?;
    let extended = make(SUITE, IDENTITY, |builder| {
        builder
            .leaf_node_capabilities(listing(ExtensionType::Unknown(UNKNOWN)))
            .key_package_extensions(package_extensions)
            .leaf_node_extensions(leaf_extensions)
    })?;
    let expired =
        make(SUITE, IDENTITY, |builder| builder.key_package_lifetime(Lifetime::init(NOT_BEFORE, NOT_BEFORE + 86_400)))?;
    let mut zero = good.clone();
    zero[INIT_KEY][1..].fill(0);
    let mut reused = good.clone();
    reused.copy_within(ENCRYPTION_KEY, INIT_KEY.start);
    let signed = |bytes: &[u8]| resign(bytes).ok_or("the seed has not the shape of a KeyPackage");
    let mut foreign_signature = good.clone();
    foreign_signature[INIT_KEY.end - 1] ^= 1;
    Ok(vec![
        ("suite-1", good.clone(), Ok(())),
        ("suite-2", plain(C::MLS_128_DHKEMP256_AES128GCM_SHA256_P256)?, Ok(())),
        ("suite-3", plain(C::MLS_128_DHKEMX25519_CHACHA20POLY1305_SHA256_Ed25519)?, Ok(())),
        ("last-resort", last_resort, Ok(())),
        ("extended", extended, Ok(())),
        ("extension-unlisted", unlisted, Err(R::UnsupportedExtension)),
        ("another-identity", make(SUITE, "alice/phone", |builder| builder)?, Err(R::CredentialMismatch)),
        ("expired", expired, Err(R::LifetimeExpired)),
        ("init-key-zero", signed(&zero)?, Err(R::Malformed)),
        ("init-key-reused", signed(&reused)?, Err(R::InitKeyReused)),
        ("signature-invalid", foreign_signature, Err(R::InvalidSignature)),
        ("truncated-in-leaf", good[..good.len() / 2].to_vec(), Err(R::Malformed)),
        ("truncated-in-signature", good[..good.len() - 1].to_vec(), Err(R::Malformed)),
        ("trailing", [good.as_slice(), &[0]].concat(), Err(R::Malformed)),
    ])
}

fn make(
    suite: Ciphersuite,
    identity: &str,
    edit: impl FnOnce(KeyPackageBuilder) -> KeyPackageBuilder,
) -> Fallible<Vec<u8>> {
    let signer = signer(suite).ok_or("nobody signs for this ciphersuite")?;
    let credential = credential(identity, &signer);
    let builder = KeyPackage::builder().key_package_lifetime(Lifetime::init(NOT_BEFORE, NOT_AFTER));
    let bundle = edit(builder).build(suite, &OpenMlsRustCrypto::default(), &signer, credential)?;
    Ok(MlsMessageOut::from(bundle.key_package().clone()).tls_serialize_detached()?)
}

fn credential(identity: &str, signer: &SignatureKeyPair) -> CredentialWithKey {
    CredentialWithKey {
        credential: BasicCredential::new(identity.into()).into(),
        signature_key: signer.public().into(),
    }
}

fn listing(extension: ExtensionType) -> Capabilities {
    Capabilities::builder().extensions(vec![extension]).build()
}

fn unknown() -> Extension {
    Extension::Unknown(UNKNOWN, UnknownExtension(vec![1, 2, 3]))
}

fn write_mls_messages(folder: &Path) -> Fallible<()> {
    fs::create_dir_all(folder)?;
    let of_group =
        |epoch, is_commit| Some(Header::OfGroup { group_id: b"garden".into(), epoch, is_commit, is_external: false });
    let [commit_public, ..] = of_a_group(PURE_PLAINTEXT_WIRE_FORMAT_POLICY)?;
    let [commit_private, welcome, application] = of_a_group(PURE_CIPHERTEXT_WIRE_FORMAT_POLICY)?;
    for (name, bytes, expected) in [
        ("welcome", welcome.clone(), Some(Header::Welcome)),
        ("commit-public", commit_public, of_group(0, true)),
        ("commit-private", commit_private.clone(), of_group(0, true)),
        ("application", application.clone(), of_group(1, false)),
        ("key-package", make(SUITE, IDENTITY, |builder| builder)?, Some(Header::Other)),
        ("trailing", [application.as_slice(), &[0]].concat(), None),
        ("truncated-in-commit", commit_private[..commit_private.len() - 1].to_vec(), None),
        ("truncated-in-welcome", welcome[..welcome.len() / 2].to_vec(), None),
    ] {
        assert_eq!(header(&bytes), expected, "what the server reads of {name}");
        fs::write(folder.join(name), bytes)?;
    }
    Ok(())
}

/// A Commit that adds a member, the Welcome, and an application message.
fn of_a_group(wire_format: WireFormatPolicy) -> Fallible<[Vec<u8>; 3]> {
    let provider = OpenMlsRustCrypto::default();
    let pair = || SignatureKeyPair::new(SUITE.signature_algorithm());
    let (alice, bob) = (pair()?, pair()?);
    let joiner = KeyPackage::builder().build(SUITE, &provider, &bob, credential("bob/phone", &bob))?;
    let mut group = MlsGroup::builder()
        .ciphersuite(SUITE)
        .with_group_id(GroupId::from_slice(b"garden"))
        .with_wire_format_policy(wire_format)
        .build(&provider, &alice, credential(IDENTITY, &alice))?;
    let (commit, welcome, _) = group.add_members(&provider, &alice, &[joiner.key_package().clone()])?;
    group.merge_pending_commit(&provider)?;
    let said = group.create_message(&provider, &alice, b"hello")?;
    Ok([commit.tls_serialize_detached()?, welcome.tls_serialize_detached()?, said.tls_serialize_detached()?])
}

fn write_token_headers(folder: &Path) -> Fallible<()> {
    fs::create_dir_all(folder)?;
    let token = format!("keypool_{}", "A".repeat(43));
    for (name, header) in [
        ("bearer", format!("Bearer {token}")),
        ("bearer-spaced", format!("bEARER  \t{token} ")),
        ("basic", format!("Basic {token}")),
        ("no-scheme", token.clone()),
        ("no-prefix", format!("Bearer {}", "A".repeat(43))),
        ("short", "Bearer keypool_AAAA".to_owned()),
        ("long", format!("Bearer {token}AAAA")),
        ("padded", format!("Bearer {token}=")),
        ("loose-bits", format!("Bearer keypool_{}B", "A".repeat(42))),
        ("standard-alphabet", format!("Bearer keypool_{}", "+/".repeat(21) + "A")),
        ("no-break-space", format!("Bearer \u{a0}{token}\u{a0}")),
    ] {
        fs::write(folder.join(name), header)?;
    }
    Ok(())
}

/// The values of `transparency/vectors.json`, which the log's own tests compare.
fn write_parts_of_the_log(seeds: &Path) -> Fallible<()> {
    let vectors = Path::new(env!("CARGO_MANIFEST_DIR")).join("../transparency/vectors.json");
    let vectors: Value = serde_json::from_slice(&fs::read(vectors)?)?;
    let text = |pointer: &str| vectors.pointer(pointer).and_then(Value::as_str).ok_or_else(|| pointer.to_owned());
    let bytes = |pointer: &str| -> Fallible<Vec<u8>> { Ok(STANDARD.decode(text(pointer)?)?) };
    let (leaf, origin) = (bytes("/steps/0/leaf")?, bytes("/origin_entry")?);
    let entry = |entry: &[u8]| [&u16::try_from(entry.len()).unwrap_or(u16::MAX).to_be_bytes(), entry].concat();
    let folder = seeds.join("log_bytes");
    fs::create_dir_all(&folder)?;
    for (name, bytes) in [
        ("details", bytes("/steps/0/opening/details")?),
        ("actor", bytes("/steps/0/opening/actor")?),
        ("bundle", [entry(&origin), entry(&leaf)].concat()),
        // Its first byte is its width, less one.
        ("bundle-with-width", [vec![1], entry(&origin), entry(&leaf)].concat()),
        ("leaf", leaf),
        ("origin", origin),
        ("stop", bytes("/stop_entry")?),
        ("key-package", bytes("/package/key_package")?),
    ] {
        fs::write(folder.join(name), bytes)?;
    }
    let folder = seeds.join("log_text");
    fs::create_dir_all(&folder)?;
    for (name, pointer) in [
        ("origin", "/log_key/origin"),
        ("vkey", "/log_key/vkey"),
        ("checkpoint", "/notes/checkpoint"),
        ("key-note", "/notes/key_note"),
        ("receipt", "/notes/receipt"),
        ("receipt-of-a-batch", "/notes/receipts_of_a_batch/0"),
        ("witness", "/notes/witness/vkey"),
        ("cosigned", "/notes/witness/cosigned"),
    ] {
        fs::write(folder.join(name), text(pointer)?)?;
    }
    fs::write(folder.join("tile"), "tile/0/x001/x234/067.p/8")?;
    let evidence = vectors["evidence"].as_array().ok_or("there is no evidence")?;
    for (number, evidence) in evidence.iter().enumerate() {
        fs::write(folder.join(format!("evidence-{number}")), evidence.to_string())?;
    }
    Ok(())
}
