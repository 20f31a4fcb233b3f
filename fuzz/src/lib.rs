//! Shared by the targets and the program that writes their seeds.

mod resign;

pub use resign::{resign, signer};

use jiff::{SignedDuration, Timestamp};
use keypool_validation::key_package::{CredentialBinding, KNOWN_CIPHERSUITES, Rejection, Rules, ValidatedKeyPackage};

/// The owner of the KeyPackages that the target accepts.
pub const IDENTITY: &str = "alice/laptop";

/// When the seeds begin: 2020-01-01.
pub const NOT_BEFORE: u64 = 1_577_836_800;

/// When the seeds end: 2100-01-01. OpenMLS uses the system's clock, and would refuse expired seeds.
pub const NOT_AFTER: u64 = 4_102_444_800;

/// The target's time: 2026-06-01.
const NOW: i64 = 1_780_272_000;

/// The server's rules, with a lifetime that allows the seeds.
#[must_use]
pub fn rules() -> Rules {
    Rules {
        ciphersuites: KNOWN_CIPHERSUITES.to_vec(),
        max_lifetime: SignedDuration::from_hours(24 * 366 * 100),
        clock_tolerance: SignedDuration::ZERO,
        credential_binding: CredentialBinding::Strict,
    }
}

/// The target's time.
#[must_use]
pub fn now() -> Timestamp {
    Timestamp::from_second(NOW).expect("NOW is within the range of a Timestamp")
}

/// Parses and checks bytes as the server does for an upload from alice's laptop.
///
/// # Errors
/// Those of the server.
pub fn parse(bytes: &[u8], rules: &Rules) -> Result<ValidatedKeyPackage, Rejection> {
    let (user, device) = IDENTITY.split_once('/').expect("IDENTITY is user/device");
    let user = user.parse().expect("IDENTITY begins with a user's name");
    let device = device.parse().expect("IDENTITY ends with a device's name");
    ValidatedKeyPackage::parse(bytes.to_vec(), (&user, &device), rules, now())
}
