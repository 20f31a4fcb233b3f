//! One KeyPackage under two refs: an ECDSA signature (r, s) has a twin (r, -s), which verifies, too.

use keypool_server::config::{Config, Limits};
use keypool_transparency::key_package::KeyPackageFields;
use keypool_validation::key_package::CredentialBinding;
use openmls::prelude::{Ciphersuite, MlsMessageBodyIn, MlsMessageIn, ProtocolVersion};
use openmls_rust_crypto::RustCrypto;
use p256::ecdsa::Signature;
use rstest::rstest;
use tls_codec::Deserialize as _;

use crate::support::{Database, Device, Raw, TestServer};

pub fn twin(bytes: &[u8]) -> Vec<u8> {
    let start = KeyPackageFields::parse(bytes).unwrap().signature.start;
    // A length of two bytes, and the signature in DER.
    let (r, s) = Signature::from_der(&bytes[start + 2..]).unwrap().split_scalars();
    let other = Signature::from_scalars(r, -s).unwrap().to_der();
    let length = u16::try_from(other.as_bytes().len()).unwrap() | 0x4000;
    [&bytes[..start], &length.to_be_bytes(), other.as_bytes()].concat()
}

/// Puts a KeyPackage into the database, beside the one whose content it has.
pub fn put_beside(database: &mut Raw, bytes: &[u8]) {
    let MlsMessageBodyIn::KeyPackage(package) = MlsMessageIn::tls_deserialize_exact(bytes).unwrap().extract() else {
        panic!("no KeyPackage")
    };
    let crypto = RustCrypto::default();
    let package = package.validate(&crypto, ProtocolVersion::Mls10).unwrap();
    let keypackage_ref = database.bytes(package.hash_ref(&crypto).unwrap().as_slice());
    let name = database.bytes(&KeyPackageFields::parse(bytes).unwrap().signed);
    let bytes = database.bytes(bytes);
    database.run(&format!(
        "INSERT INTO key_packages
             (keypackage_ref, device_id, ciphersuite, key_package, not_after, last_resort, state, package_id)
         SELECT {keypackage_ref}, device_id, ciphersuite, {bytes}, not_after, last_resort, 'available', package_id
         FROM key_packages WHERE package_id = {name}"
    ));
}

/// Else an honest log would have two hand-outs of one KeyPackage under one tag.
#[rstest]
#[tokio::test]
async fn a_twin_is_a_duplicate_on_every_device(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
    #[values(false, true)] at_once: bool,
) {
    let change =
        |config: &mut Config| (config.credential_binding, config.limits) = (CredentialBinding::Off, Limits::Off);
    let server = TestServer::start_with(db, change).await;
    let alice = server.anyone().registered("alice", "laptop").await;
    let mallory = server.anyone().registered("mallory", "phone").await;
    let suite = Ciphersuite::MLS_128_DHKEMP256_AES128GCM_SHA256_P256;
    let package = Device::new("alice", "laptop").of_suite(suite).key_package();
    let other = twin(&package);
    assert_ne!(package, other);
    assert_eq!(KeyPackageFields::parse(&package).unwrap().signed, KeyPackageFields::parse(&other).unwrap().signed);
    if at_once {
        let answer = alice.upload(&[&package, &other]).await.ok();
        assert_eq!(answer["rejected"][0]["reason"], "duplicate", "{answer}");
        return;
    }
    alice.uploaded(&[&package]).await;
    let answer = mallory.upload(&[&other]).await.ok();
    assert_eq!(answer["rejected"][0]["reason"], "duplicate", "{answer}");
}
