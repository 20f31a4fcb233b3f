//! The devices whose KeyPackages cannot be added to a group, and why not.

use jiff::{SignedDuration, Timestamp};
use keypool_openapi::{DeviceOf, Reservation};
use openmls::{
    group::{AddMembersError, CreateCommitError},
    prelude::{KeyPackageVerifyError, ProposalValidationError},
    treesync::errors::{LeafNodeValidationError, LifetimeError},
};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    cause::Cause,
    clock::is_own_clock_off,
    error::{Error, WrongCredential},
};

/// A device that was not added, because this program cannot add its KeyPackage to the group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct UnfitDevice {
    /// The device.
    #[serde(flatten)]
    pub device: DeviceOf,
    /// Why its KeyPackage does not fit, for programs.
    pub reason: UnfitReason,
    /// Why its KeyPackage does not fit, for people.
    pub why: String,
}

/// Why a KeyPackage does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema, strum::EnumIter)]
#[serde(rename_all = "kebab-case")]
pub enum UnfitReason {
    /// This machine's clock is off the server's, by which the KeyPackage is valid.
    OwnClock,
    /// By the server's time, too, its lifetime has not begun yet, or has ended.
    Lifetime,
    /// Its credential is of a type that this program cannot check.
    Credential,
    /// Its signature key is that of another member, or of another device that was to be added.
    SameSignatureKey,
    /// Another of its keys is that of another member, or of another device that was to be added.
    SameKey,
    /// Its program and the group support different things.
    Unsupported,
}

impl UnfitDevice {
    /// The device of a reservation. `ahead` is how far this machine's clock is ahead of the server's, if known.
    pub(super) fn of(reservation: &Reservation, error: &Error, ahead: Option<SignedDuration>) -> Self {
        let (Error::UnfitKeyPackage { source, .. } | Error::Mls { source, .. }) = error else {
            return Self::new(reservation, UnfitReason::Unsupported, error.with_causes());
        };
        let lifetime = match lifetime_error(source) {
            Some(lifetime) if is_own_clock_off(lifetime, ahead) => {
                let why = Error::WrongClock { ahead: ahead.unwrap_or_default() }.to_string();
                return Self::new(reservation, UnfitReason::OwnClock, why);
            }
            lifetime => lifetime,
        };
        let reason = match lifetime {
            Some(_) => UnfitReason::Lifetime,
            None => reason_of(source),
        };
        let why = lifetime.map_or_else(|| error.with_causes(), |lifetime| lifetime_text(lifetime, ahead));
        Self::new(reservation, reason, why)
    }

    fn new(reservation: &Reservation, reason: UnfitReason, why: String) -> Self {
        let (user, device) = (reservation.user.clone(), reservation.device.clone());
        Self { device: DeviceOf { user, device }, reason, why }
    }
}

/// Why OpenMLS refuses a lifetime by this machine's clock, if that is why it refused a KeyPackage.
fn lifetime_error(source: &Cause) -> Option<&LifetimeError> {
    if let Some(KeyPackageVerifyError::LifetimeError(error)) = source.downcast_ref() {
        return Some(error);
    }
    match of_proposal(source)? {
        ProposalValidationError::LeafNodeValidation(LeafNodeValidationError::Lifetime(error)) => Some(error),
        _ => None,
    }
}

fn reason_of(source: &Cause) -> UnfitReason {
    if source.is::<WrongCredential>() {
        return UnfitReason::Credential;
    }
    match of_proposal(source) {
        Some(ProposalValidationError::DuplicateSignatureKey) => UnfitReason::SameSignatureKey,
        Some(ProposalValidationError::DuplicateEncryptionKey | ProposalValidationError::DuplicateInitKey) => {
            UnfitReason::SameKey
        }
        _ => UnfitReason::Unsupported,
    }
}

/// What OpenMLS finds wrong with the proposals of a Commit that it was to make.
fn of_proposal(source: &Cause) -> Option<&ProposalValidationError> {
    match source.downcast_ref::<AddMembersError<rusqlite::Error>>()? {
        AddMembersError::CreateCommitError(CreateCommitError::ProposalValidationError(error)) => Some(error),
        _ => None,
    }
}

fn lifetime_text(error: &LifetimeError, ahead: Option<SignedDuration>) -> String {
    let time = |seconds: u64| {
        let time = i64::try_from(seconds).ok().and_then(|seconds| Timestamp::from_second(seconds).ok());
        time.map_or_else(|| "an impossible time".to_owned(), |time| time.to_string())
    };
    let clock = if ahead.is_some() { "by the server's clock, too" } else { "by this machine's clock" };
    match error {
        LifetimeError::Expired { not_after, .. } => {
            format!("its KeyPackage has ended at {}, {clock}", time(*not_after))
        }
        LifetimeError::NotValidYet { not_before, .. } => {
            format!(
                "its KeyPackage is valid only from {} on, {clock}: the clock of that device is ahead",
                time(*not_before)
            )
        }
        LifetimeError::SystemTimeBeforeUnixEpoch => "this machine's clock is before 1970".to_owned(),
    }
}
