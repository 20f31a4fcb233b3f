use serde::{Deserialize, Serialize};
use strum::{Display, EnumIter, EnumString, IntoStaticStr};
use utoipa::ToSchema;

use crate::{MissingDevice, ReservationId};

/// An error answer, `application/problem+json` (RFC 9457).
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// The problem type, for programs: it is stable.
    #[serde(rename = "type")]
    pub kind: ProblemType,
    /// The problem in a few words, the same for every occurrence.
    #[schema(example = "No KeyPackage is left")]
    pub title: String,
    /// The HTTP status.
    #[schema(example = 404)]
    pub status: u16,
    /// This occurrence: what happened, and what to do next.
    #[schema(example = "No KeyPackage of alice is left. Try again when a device of alice has refreshed its pool.")]
    pub detail: String,
    /// If nothing could be reserved: the reason for each device.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<MissingDevice>,
    /// If a Commit was refused because of a reservation: the reservation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, nullable = false)]
    pub reservation_id: Option<ReservationId>,
    /// If a Commit was refused because of its epoch: the group's current epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, example = 8)]
    pub epoch: Option<u64>,
}

/// The types of problems.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    Display,
    EnumIter,
    EnumString,
    IntoStaticStr,
    ToSchema,
)]
#[serde(rename_all = "kebab-case")]
#[strum(serialize_all = "kebab-case")]
pub enum ProblemType {
    /// The request cannot be parsed, or breaks a rule of its form.
    MalformedRequest,
    /// The request has no valid bearer token.
    Unauthenticated,
    /// The caller is known, but may not do this.
    Forbidden,
    /// There is no such user.
    UnknownUser,
    /// The user has no such device.
    UnknownDevice,
    /// There is no such reservation, or its KeyPackage was deleted.
    UnknownReservation,
    /// The server knows no Commit of this group.
    UnknownGroup,
    /// The server has nothing at this path.
    NotFound,
    /// The path does not have this method.
    MethodNotAllowed,
    /// No KeyPackage is left to reserve.
    PoolExhausted,
    /// There are KeyPackages, but all expire too soon to be handed out.
    PoolExpired,
    /// There are KeyPackages, but of other ciphersuites.
    NoMatchingCiphersuite,
    /// The user has a device of this name already.
    AlreadyRegistered,
    /// The reservation was spent already, for another group.
    AlreadySpent,
    /// The reservation lapsed, and no longer holds its KeyPackage.
    ReservationLapsed,
    /// Another device made this reservation.
    NotYourReservation,
    /// The group is in another epoch than the Commit: another Commit came first.
    StaleEpoch,
    /// The server's transparency log has lost leaves of this checkpoint: its database was restored from a backup.
    LogRolledBack,
    /// The server's transparency log contradicts this checkpoint.
    LogForked,
    /// The queue of a device that the Commit adds has no room for the caller's Welcome.
    QueueFull,
    /// The pool has no room for another KeyPackage.
    PoolFull,
    /// The body is larger than the call allows.
    PayloadTooLarge,
    /// The body is compressed.
    UnsupportedMediaType,
    /// The `Idempotency-Key` was used before with another request.
    IdempotencyMismatch,
    /// The caller sends more requests than it may at a time.
    TooManyRequests,
    /// The server, or its database, cannot answer now.
    Unavailable,
    /// The server has a fault.
    Internal,
}
