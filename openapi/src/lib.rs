//! The wire types of Keypool: what travels between a server and its clients, once for both sides.
//!
//! JSON throughout; times are RFC 3339, bytes standard base64, [`KeyPackageRef`]s lower-case hex. A KeyPackage travels
//! as the `MLSMessage` that wraps it (RFC 9420, section 6). The OpenAPI document generated from these types and the
//! server's routes is kept beside this crate, in `openapi.json`.

mod delivery;
mod fields;
mod ids;
mod inventory;
mod keypackages;
mod problems;
mod registration;
mod reservations;
mod signature_keys;

pub use delivery::{
    AckRequest, AckResponse, CommitRequest, CommitResponse, MessageKind, MessageRequest, MessageResponse, MessagesPage,
    MessagesQuery, QueuedMessage, Undelivered, UndeliveredReason,
};
pub use ids::{Base64Bytes, DeviceName, GroupId, InvalidId, KeyPackageRef, ReservationId, UserName};
pub use inventory::{
    Action, AuditEvent, AuditPage, AuditQuery, DeviceOf, EndedKeyPackage, InventoryItem, InventoryPage, InventoryQuery,
    LowPool, LowPools, LowPoolsQuery, RevokeRequest, RevokeResponse,
};
pub use keypackages::{
    AcceptedKeyPackage, Drain, Health, LastResortStatus, PoolStatus, RejectedKeyPackage, RejectionReason, State,
    SuiteStatus, UploadRequest, UploadResponse,
};
pub use problems::{MissingReason, Problem, ProblemType};
pub use registration::{
    Device, DeviceList, DevicesQuery, LookupRequest, LookupResponse, RegisterRequest, RegisterResponse, RemovedDevice,
    TokenResponse,
};
pub use reservations::{
    MissingDevice, ReleaseRequest, ReleaseResponse, Reservation, ReserveRequest, ReserveResponse, SpendRequest,
    SpendResponse,
};
pub use signature_keys::{
    PreviousSignatureKey, SIGNATURE_KEY_CHANGE_LABEL, SignatureKey, SignatureKeyChange, SignatureKeyChangeContent,
    signature_key_fingerprint,
};

use fields::{bounded, present, some_bounded, whole, whole_number, whole_numbers};

/// The most KeyPackages that one upload may carry.
pub const MAX_UPLOAD_BATCH: usize = 100;

/// The largest KeyPackage that the server takes, in bytes of its `MLSMessage` encoding.
pub const MAX_KEY_PACKAGE_SIZE: usize = 64 * 1024;

/// The most users whose KeyPackages one reservation request may name.
pub const MAX_TARGETS: usize = 100;

/// The most devices that one Commit or message may go to, and the most reservations that one Commit may spend.
pub const MAX_RECIPIENTS: usize = 1_000;

/// The most messages that one acknowledgement may name.
pub const MAX_ACKNOWLEDGED: usize = 1_000;

/// The largest Commit, Welcome or message that the server takes, in bytes of its `MLSMessage` encoding.
pub const MAX_MESSAGE_SIZE: usize = 1024 * 1024;

/// The most KeyPackages that one revocation may name.
pub const MAX_REVOCATIONS: usize = 1_000;

/// The most signature keys that one upload may change: a device has one of each ciphersuite.
pub const MAX_SIGNATURE_KEY_CHANGES: usize = 16;

/// The most users whose devices one look-up may ask for.
pub const MAX_LOOKUP_USERS: usize = 1_000;
