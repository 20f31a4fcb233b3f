//! What the targets and the maker of their seeds share.

mod resign;

pub use resign::{resign, signer};

use jiff::{SignedDuration, Timestamp};
use keypool_validation::key_package::{CredentialBinding, KNOWN_CIPHERSUITES, Rejection, Rules, ValidatedKeyPackage};

/// Whose KeyPackages the target takes.
pub const IDENTITY: &str = "alice/laptop";

/// When the seeds begin: 2020-01-01.
pub const NOT_BEFORE: u64 = 1_577_836_800;

/// When the seeds end: 2100-01-01. OpenMLS asks the system's clock, and seeds that had expired would lead nowhere.
pub const NOT_AFTER: u64 = 4_102_444_800;

/// When it is: 2026-06-01.
const NOW: i64 = 1_780_272_000;

/// The strictest rules that the seeds keep, which live long.
#[must_use]
pub fn rules() -> Rules {
    Rules {
        ciphersuites: KNOWN_CIPHERSUITES.to_vec(),
        max_lifetime: SignedDuration::from_hours(24 * 366 * 100),
        credential_binding: CredentialBinding::Strict,
    }
}

/// The time at which the target judges.
#[must_use]
pub fn now() -> Timestamp {
    Timestamp::from_second(NOW).expect("NOW is within the range of a Timestamp")
}

/// Judges bytes as the server does that receives them from alice's laptop.
///
/// # Errors
/// The server's.
pub fn parse(bytes: &[u8], rules: &Rules) -> Result<ValidatedKeyPackage, Rejection> {
    let (user, device) = IDENTITY.split_once('/').expect("IDENTITY is user/device");
    let user = user.parse().expect("IDENTITY begins with a user's name");
    let device = device.parse().expect("IDENTITY ends with a device's name");
    ValidatedKeyPackage::parse(bytes.to_vec(), (&user, &device), rules, now())
}
