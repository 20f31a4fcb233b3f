//! Answers of the command that neither the server nor the library has a type for.

use keypool_openapi::{
    Action, AuditEvent, AuditPage, Base64Bytes, DeviceName, DeviceOf, KeyPackageRef, ReservationId, Undelivered,
};
use serde::Serialize;
use utoipa::ToSchema;

/// The answer of a command that only does something.
#[derive(Debug, Serialize, ToSchema)]
pub struct Done {
    /// `true`.
    pub done: bool,
    /// The devices for which the server could not queue the message that the command sent, if it sent one.
    pub undelivered: Vec<Undelivered>,
}

/// A bearer token.
#[derive(Debug, Serialize, ToSchema)]
pub struct Token {
    /// The token, which is a secret.
    pub token: String,
}

/// A bearer token that replaces another one.
#[derive(Debug, Serialize, ToSchema)]
pub struct NewToken {
    /// The device.
    pub device: DeviceName,
    /// The token, which is a secret; `null` for this device, which uses it from now on.
    pub token: Option<String>,
}

/// A code for a further device, and the device that was registered with it.
#[derive(Debug, Serialize, ToSchema)]
pub struct LinkedDevice {
    /// The code, for `keypool init --link`; `null` when a device has used it.
    pub code: Option<String>,
    /// The text of the QR code: the code with the server and the user; `null` when a device has used it.
    pub link: Option<String>,
    /// When the code ends.
    #[schema(value_type = String, format = DateTime)]
    pub expires_at: jiff::Timestamp,
    /// The device that was registered; `null` while the command waits.
    pub device: Option<DeviceName>,
    /// The ids of the groups to which this device added the new one.
    pub invited: Vec<String>,
}

/// The server of this device.
#[derive(Debug, Serialize, ToSchema)]
pub struct ServerAddress {
    /// Its address.
    pub server: String,
}

/// A part of the audit trail.
#[derive(Debug, Serialize, ToSchema)]
pub struct Trail {
    /// The events, newest first.
    pub events: Vec<TrailEvent>,
    /// The number for `--before` that shows the next events; `null` if there are none.
    pub next: Option<i64>,
}

/// An event of the audit trail.
#[derive(Debug, Serialize, ToSchema)]
pub struct TrailEvent {
    /// The event's number: later events have higher numbers.
    pub id: i64,
    /// The time of the event.
    #[schema(value_type = String, format = DateTime)]
    pub at: jiff::Timestamp,
    /// The step.
    pub action: Action,
    /// The KeyPackage's ref.
    pub keypackage_ref: KeyPackageRef,
    /// The KeyPackage's owner.
    pub owner: DeviceOf,
    /// The device that took the step, or whose reservation lapsed; `null` for the operator, and for `expire`.
    pub actor: Option<DeviceOf>,
    /// The reservation.
    pub reservation_id: Option<ReservationId>,
    /// With `spend`: the group's id in hex, as `keypool group list` prints it. With `reserve`: a digest that hides the id.
    pub group: Option<String>,
    /// Whether the KeyPackage was the last resort.
    pub last_resort: bool,
    /// With `upload`: the KeyPackage's `not_after`. With `reserve`: the reservation's end.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub until: Option<jiff::Timestamp>,
    /// With `signature-key-changed`: the new signature key, in base64 as in `keypool device list`.
    pub signature_key: Option<Base64Bytes>,
}

impl From<AuditPage> for Trail {
    fn from(page: AuditPage) -> Self {
        Self { events: page.events.into_iter().map(TrailEvent::from).collect(), next: page.next }
    }
}

impl From<AuditEvent> for TrailEvent {
    fn from(event: AuditEvent) -> Self {
        let AuditEvent { id, at, action, keypackage_ref, owner, actor, reservation_id, .. } = event;
        Self {
            id,
            at,
            action,
            keypackage_ref,
            owner,
            actor,
            reservation_id,
            group: event.group_id.map(|group_id| hex::encode(group_id.0)),
            last_resort: event.last_resort,
            until: event.until,
            signature_key: event.signature_key,
        }
    }
}

/// The files for `keypool-verify`.
#[derive(Debug, Serialize, ToSchema)]
pub struct Exported {
    /// Their paths.
    #[schema(value_type = Vec<String>)]
    pub files: Vec<std::path::PathBuf>,
    /// The commands that check them.
    pub commands: Vec<String>,
}

/// What a command that fails prints to the standard error.
#[derive(Debug, Serialize, ToSchema)]
pub struct Failure {
    /// What is wrong.
    pub error: String,
    /// The `type` of the server's problem, or `usage` for arguments that cannot be used; `null` for any other error.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// What to do, if the error does not say it.
    pub hint: Option<String>,
}
