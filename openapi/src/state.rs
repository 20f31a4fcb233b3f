use serde::{Deserialize, Serialize};
use strum::{AsRefStr, Display, EnumIter, EnumString, IntoStaticStr};
use utoipa::ToSchema;

/// The state of a KeyPackage.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    Serialize,
    Deserialize,
    AsRefStr,
    Display,
    EnumIter,
    EnumString,
    IntoStaticStr,
    ToSchema,
)]
#[serde(rename_all = "kebab-case")]
#[strum(serialize_all = "kebab-case")]
pub enum State {
    /// An adder can reserve it.
    Available,
    /// An adder holds it.
    Reserved,
    /// It was used in a Commit, and is never handed out again.
    Spent,
    /// Its owner or the operator revoked it.
    Revoked,
    /// Its `not_after` has passed.
    Expired,
    /// It was handed out once, and released or left to lapse, on a server that hands out each KeyPackage only once.
    Retired,
}
