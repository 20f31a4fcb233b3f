//! The wire types of Keypool, which server and clients share.
//!
//! JSON throughout; times are RFC 3339, bytes standard base64, [`KeyPackageRef`]s lower-case hex. A KeyPackage travels
//! as the `MLSMessage` that wraps it (RFC 9420, section 6). `openapi.json` beside this crate is the OpenAPI
//! document, generated from these types and the server's routes.

mod audit;
mod commits;
mod devices;
mod fields;
mod groups;
mod ids;
mod inventory;
mod log;
mod messages;
mod problems;
mod release;
mod reserve;
mod revoke;
mod schemas;
mod server;
mod signature_keys;
mod spend;
mod state;
mod status;
mod upload;

pub use audit::{Action, AuditEvent, AuditPage, AuditQuery};
pub use commits::{CommitRequest, CommitResponse, SpendReceipt, Undelivered, UndeliveredReason};
pub use devices::{
    Device, DeviceLink, DeviceLinks, DeviceList, DeviceOf, DevicesQuery, LinkState, LookupRequest, LookupResponse,
    NewDeviceLink, RegisterRequest, RegisterResponse, RemovedDevice, TokenResponse,
};
pub use groups::{GroupInfoRequest, GroupInfoResponse, GroupList, GroupsQuery, KeptGroupInfo, ListedGroup};
pub use ids::{
    Base64Bytes, DeviceName, GroupId, InvalidId, KeyPackageRef, MAX_USER_NAME_SIZE, ReservationId, UserName,
    device_name,
};
pub use inventory::{InventoryItem, InventoryPage, InventoryQuery, inventory_digest};
pub use log::{
    CheckpointRequest, FoundStep, IncludedLeaf, LeafOpening, LogHead, LogHeir, LogInfo, LogOrigin, LogSize, Proof,
    ProofOf, ProofsRequest, ProofsResponse, StepProof,
};
pub use messages::{
    AckRequest, AckResponse, MessageKind, MessageRequest, MessageResponse, MessagesPage, MessagesQuery, QueuedMessage,
    Refusal, RefusalReason, RefusedMessage,
};
pub use problems::{Problem, ProblemType};
pub use release::{ReleaseRequest, ReleaseResponse};
pub use reserve::{MissingDevice, MissingReason, Reservation, ReserveRequest, ReserveResponse};
pub use revoke::{EndedKeyPackage, RevokeRequest, RevokeResponse};
pub use server::{Documentation, ServerInfo, ServerLimits};
pub use signature_keys::{
    PreviousSignatureKey, SIGNATURE_KEY_CHANGE_LABEL, SignatureKey, SignatureKeyChange, SignatureKeyChangeContent,
    signature_key_fingerprint,
};
pub use spend::{SpendRequest, SpendResponse};
pub use state::State;
pub use status::{
    Drain, Health, LastResortStatus, LowPool, LowPools, LowPoolsQuery, PoolStatus, StatusQuery, SuiteStatus,
};
pub use upload::{AcceptedKeyPackage, RejectedKeyPackage, RejectionReason, UploadRequest, UploadResponse};

pub use fields::Object;
use fields::{
    list, list_or_empty, object, objects, objects_or_empty, optional_list, or_default, parsed, signed_number,
    signed_parameter, whole, whole_list, whole_number, whole_numbers,
};

/// The most KeyPackages that one upload may carry.
pub const MAX_UPLOAD_BATCH: usize = 100;

/// The largest KeyPackage that the server accepts, in bytes of its `MLSMessage` encoding.
pub const MAX_KEY_PACKAGE_SIZE: usize = 64 * 1024;

/// The most users whose KeyPackages one reservation request may name.
pub const MAX_TARGETS: usize = 100;

/// The most recipients that one Commit or message may have, and the most reservations that one Commit may spend.
pub const MAX_RECIPIENTS: usize = 1_000;

/// The most messages that one acknowledgement may name.
pub const MAX_ACKNOWLEDGED: usize = 1_000;

/// The largest Commit, Welcome or message that the server accepts, in bytes of its `MLSMessage` encoding.
pub const MAX_MESSAGE_SIZE: usize = 1024 * 1024;

/// The most KeyPackages that one revocation may name.
pub const MAX_REVOCATIONS: usize = 1_000;

/// The most ciphersuites that one reserve may name.
pub const MAX_CIPHERSUITES: usize = 16;

/// The most reservations and KeyPackages of which one request may ask for proofs.
pub const MAX_PROOFS: usize = 1_000;

/// The most signature keys that one upload may change: a device has one of each ciphersuite.
pub const MAX_SIGNATURE_KEY_CHANGES: usize = 16;

/// The most users whose devices one look-up may ask for.
pub const MAX_LOOKUP_USERS: usize = 1_000;

/// The most bytes that a group id may have. It has one at least.
pub const MAX_GROUP_ID_SIZE: usize = 256;
