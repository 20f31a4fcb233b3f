//! Bytes that claim to be a KeyPackage, unchanged and with good signatures.
#![no_main]

use std::sync::LazyLock;

use keypool_fuzz::{IDENTITY, now, parse, resign, rules};
use keypool_openapi::RejectionReason;
use keypool_transparency::key_package::KeyPackageFields;
use keypool_validation::key_package::{Rejection, Rules, ValidatedKeyPackage};
use libfuzzer_sys::fuzz_target;

/// Seeds that have to be accepted and signed correctly; otherwise no input would get past the signatures.
const GOOD: [&[u8]; 4] = [
    include_bytes!("../seeds/key_package/suite-1"),
    include_bytes!("../seeds/key_package/suite-2"),
    include_bytes!("../seeds/key_package/suite-3"),
    include_bytes!("../seeds/key_package/last-resort"),
];

static RULES: LazyLock<Rules> = LazyLock::new(rules);

fuzz_target!(
    init: for good in GOOD {
        parse(good, &RULES).expect("the server takes the good seeds");
        assert_eq!(resign(good).as_deref(), Some(good), "signed again, a good seed is the same");
    },
    |bytes: &[u8]| {
        let _ = validate(bytes);
        if let Some(signed) = resign(bytes).filter(|signed| signed != bytes) {
            let reason = validate(&signed).err().map(|rejection| rejection.reason);
            assert_ne!(reason, Some(RejectionReason::InvalidSignature), "a good signature was refused");
        }
    }
);

/// Checks that hold for every result.
fn validate(bytes: &[u8]) -> Result<ValidatedKeyPackage, Rejection> {
    let verdict = parse(bytes, &RULES);
    match &verdict {
        Ok(package) => check_accepted(package, bytes),
        Err(rejection) => assert!(!rejection.detail.is_empty(), "{} is not explained", rejection.reason),
    }
    verdict
}

fn check_accepted(package: &ValidatedKeyPackage, bytes: &[u8]) {
    let contains = |part: &[u8]| bytes.windows(part.len()).any(|window| window == part);
    assert_eq!(package.bytes, bytes, "the bytes that come out are not those that went in");
    assert!(RULES.ciphersuites.contains(&package.ciphersuite), "ciphersuite {} was taken", package.ciphersuite);
    assert_eq!(package.ciphersuite.to_be_bytes(), bytes[6..8], "the ciphersuite is not the KeyPackage's");
    assert!(package.not_after > now(), "it expired at {}", package.not_after);
    assert!(contains(IDENTITY.as_bytes()), "it is somebody else's");
    assert!(contains(&package.init_key) && contains(&package.encryption_key), "its keys are not the KeyPackage's");
    assert_ne!(package.init_key, package.encryption_key, "one key serves two purposes");
    assert!((32..=64).contains(&package.keypackage_ref.as_bytes().len()), "the ref is {}", package.keypackage_ref);
    let again = parse(&package.bytes, &RULES).expect("what was accepted is accepted again");
    assert_eq!(again.keypackage_ref, package.keypackage_ref, "the same bytes have two refs");
    let logged = KeyPackageFields::parse(bytes).expect("the log can name what was accepted");
    assert_eq!(logged.ciphersuite, package.ciphersuite, "the log reads another ciphersuite");
    assert_eq!(u64::try_from(package.not_after.as_second()), Ok(logged.not_after), "the log reads another end");
    assert_eq!(logged.last_resort, package.last_resort, "the log and the server disagree on what a last resort is");
}
