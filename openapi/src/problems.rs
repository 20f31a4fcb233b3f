use serde::{Deserialize, Serialize};
use strum::{Display, EnumIter, EnumString, IntoStaticStr};
use utoipa::ToSchema;

use crate::{MissingDevice, ReservationId};

/// What went wrong with a request, as `application/problem+json` (RFC 9457).
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// Which problem: stable, and what a program decides by.
    #[serde(rename = "type")]
    pub kind: ProblemType,
    /// The problem in a few words, the same for every occurrence.
    #[schema(example = "No KeyPackage is left")]
    pub title: String,
    /// The HTTP status.
    #[schema(example = 404)]
    pub status: u16,
    /// This occurrence: what happened, to what, and what to do next.
    #[schema(example = "No KeyPackage of alice is left. Try again when a device of alice has refreshed its pool.")]
    pub detail: String,
    /// Where nothing at all could be reserved: what each device lacks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<MissingDevice>,
    /// Where a Commit was refused for a reservation: which one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, nullable = false)]
    pub reservation_id: Option<ReservationId>,
    /// Where a Commit was refused for its epoch: the group's epoch now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, example = 8)]
    pub epoch: Option<u64>,
}

/// The kinds of problem a request can meet.
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
    /// The request cannot be read, or breaks a rule of its own form.
    MalformedRequest,
    /// No valid bearer token came with the request.
    Unauthenticated,
    /// The caller is known, and may not do this.
    Forbidden,
    /// There is no such user.
    UnknownUser,
    /// The user has no such device.
    UnknownDevice,
    /// There is no such reservation, or its KeyPackage is forgotten.
    UnknownReservation,
    /// The server knows of no Commit of this group.
    UnknownGroup,
    /// Nothing is served at this path.
    NotFound,
    /// Something is served at this path, but not with this method.
    MethodNotAllowed,
    /// No KeyPackage is left to reserve.
    PoolExhausted,
    /// There are KeyPackages, and all end too soon to be handed out.
    PoolExpired,
    /// There are KeyPackages, but of other ciphersuites.
    NoMatchingCiphersuite,
    /// The user has a device of this name already.
    AlreadyRegistered,
    /// The reservation was spent already, for another group.
    AlreadySpent,
    /// The reservation ran out, and the KeyPackage is no longer held for it.
    ReservationLapsed,
    /// Another device made this reservation.
    NotYourReservation,
    /// The Commit is not of the group's epoch: another one came first.
    StaleEpoch,
    /// The queue of a device that a Commit adds does not take the caller's Welcome.
    QueueFull,
    /// The pool takes no further KeyPackage.
    PoolFull,
    /// The body is larger than the server reads.
    PayloadTooLarge,
    /// The `Idempotency-Key` was used before with another request.
    IdempotencyMismatch,
    /// The caller asks for more than it may at a time.
    TooManyRequests,
    /// The server, or its database, cannot answer now.
    Unavailable,
    /// A fault of the server's own.
    Internal,
}

/// Why a device has no KeyPackage in an answer to `POST /keypackages/reserve`.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Display, EnumIter, EnumString, IntoStaticStr, ToSchema,
)]
#[serde(rename_all = "kebab-case")]
#[strum(serialize_all = "kebab-case")]
pub enum MissingReason {
    /// There is no such user.
    UnknownUser,
    /// The user has no such device, or none at all.
    UnknownDevice,
    /// Its pool is empty, and it has no last resort.
    PoolExhausted,
    /// All it has ends too soon to be handed out.
    PoolExpired,
    /// It has KeyPackages, but of other ciphersuites.
    NoMatchingCiphersuite,
    /// The caller reserves this user's KeyPackages too often, or the answer has 4 MiB of others already: another request
    /// gets it.
    TooManyRequests,
    /// In the answer to a repetition alone: what the first answer had is no longer held. It lapsed, or was spent, released or
    /// revoked.
    ReservationLapsed,
}
