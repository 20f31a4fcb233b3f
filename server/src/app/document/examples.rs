//! Examples of requests and answers, made from the wire types, so that they always fit the schemas.

use jiff::Timestamp;
use keypool_openapi::{
    AcceptedKeyPackage, AckRequest, AckResponse, Action, AuditEvent, AuditPage, Base64Bytes, CheckpointRequest,
    CommitRequest, CommitResponse, Device, DeviceLink, DeviceLinks, DeviceList, DeviceName, DeviceOf, Drain,
    EndedKeyPackage, FoundStep, GroupInfoRequest, GroupInfoResponse, GroupList, Health, IncludedLeaf, InventoryItem,
    InventoryPage, KeptGroupInfo, KeyPackageRef, LastResortStatus, LeafOpening, LinkState, ListedGroup, LogHead,
    LogInfo, LogOrigin, LogSize, LookupRequest, LookupResponse, LowPool, LowPools, MessageKind, MessageRequest,
    MessageResponse, MessagesPage, MissingDevice, MissingReason, NewDeviceLink, PoolStatus, PreviousSignatureKey,
    ProofOf, ProofsRequest, ProofsResponse, QueuedMessage, RegisterRequest, RegisterResponse, RejectedKeyPackage,
    RejectionReason, ReleaseRequest, ReleaseResponse, RemovedDevice, Reservation, ReservationId, ReserveRequest,
    ReserveResponse, RevokeRequest, RevokeResponse, SignatureKey, SpendRequest, SpendResponse, State, StepProof,
    SuiteStatus, TokenResponse, Undelivered, UndeliveredReason, UploadRequest, UploadResponse, UserName,
};
use serde::Serialize;
use serde_json::Value;
use utoipa::{
    Modify,
    openapi::{OpenApi, RefOr},
};
use uuid::Uuid;

use crate::{app::info::info, config::Config};

/// The user of the examples. The README has other names, so that the examples do not take them.
const OWNER: &str = "erika";

/// The KeyPackage of the examples. Swagger UI replaces it by real ones, see [`crate::app::swagger_ui`].
pub(crate) const KEY_PACKAGE: &str = "AAEABQABAAE=";

const TOKEN: &str = "keypool_tTnyVvyUjlJVyjUTbW0zQxzSnf6aEYpAfHyZxpQPnG0";

/// The transparency log of the examples.
const LOG: &str = "keypool/0123456789abcdef/1-89abcdef";

/// Its checkpoint, without the signature.
const CHECKPOINT: &str =
    "keypool/0123456789abcdef/1-89abcdef\n33\nyseb/9r18oj38owFgeeKOIOKlN5hZQextK6/aD2hlrM=\n\n\u{2014} …\n";

/// Adds the examples to the document.
pub(super) struct Examples;

impl Modify for Examples {
    fn modify(&self, openapi: &mut OpenApi) {
        for item in openapi.paths.paths.values_mut() {
            for operation in operations(item) {
                let Some(name) = operation.operation_id.clone() else { continue };
                let Some(example) = example(&name) else { continue };
                let body = operation.request_body.as_mut().and_then(|body| match body {
                    RefOr::T(body) => body.content.get_mut("application/json"),
                    RefOr::Ref(_) => None,
                });
                if let Some(RefOr::T(content)) = body {
                    content.example = example.request;
                }
                let success = operation.responses.responses.iter_mut().find(|(status, _)| status.starts_with('2'));
                let Some((_, RefOr::T(response))) = success else { continue };
                if let Some(RefOr::T(content)) = response.content.get_mut("application/json") {
                    content.example = Some(example.response);
                }
            }
        }
    }
}

struct Example {
    request: Option<Value>,
    response: Value,
}

/// The example request and answer of an operation, by its operationId.
fn example(operation: &str) -> Option<Example> {
    let of = |request: Option<Value>, response: Value| Some(Example { request, response });
    match operation {
        "register_device" => of(
            json(&RegisterRequest { user: user(OWNER), device: device("laptop") }),
            value(&RegisterResponse { user: user(OWNER), device: device("laptop"), token: TOKEN.to_owned() }),
        ),
        "get_server" => of(None, value(&info(&Config::default()))),
        "list_devices" => of(None, value(&devices())),
        "lookup_devices" => of(
            json(&LookupRequest { users: vec![user(OWNER), user("zoe")], removed: false }),
            value(&LookupResponse { users: vec![devices()], unknown: vec![user("zoe")], remaining: Vec::new() }),
        ),
        "change_device_token" => of(None, value(&TokenResponse { device: device("laptop"), token: TOKEN.to_owned() })),
        "make_device_link" => {
            of(None, value(&NewDeviceLink { code: "K7QP-2M4X-9TRD".to_owned(), expires_at: time(600) }))
        }
        "list_device_links" => {
            let (made_by, used_by) = (device("laptop"), Some(device("phone")));
            let link = DeviceLink { made_by, state: LinkState::Used, device: used_by, expires_at: time(600) };
            of(None, value(&DeviceLinks { links: vec![link] }))
        }
        "remove_device" | "remove_user_device" => {
            of(None, value(&RemovedDevice { user: user(OWNER), device: device("laptop"), revoked: 33 }))
        }
        "upload_key_packages" => of(json(&UploadRequest::of(vec![KEY_PACKAGE.to_owned()])), value(&uploaded())),
        "reserve_key_packages" => of(json(&reserve()), value(&reserved())),
        "spend_reservation" => of(
            json(&SpendRequest { bind: Some(bind()), ..SpendRequest::new(reservation_id(), group()) }),
            value(&SpendResponse {
                keypackage_ref: hash(0xa1),
                state: State::Spent,
                spent_at: time(30),
                handout: Some(0),
                receipt: None,
            }),
        ),
        "get_log" => of(None, value(&log())),
        "compare_checkpoint" => of(json(&CheckpointRequest { checkpoint: CHECKPOINT.to_owned() }), Value::Null),
        "prove_steps" => of(json(&proofs()), value(&proven())),
        "release_reservation" => of(
            json(&ReleaseRequest { reservation_id: reservation_id() }),
            value(&ReleaseResponse { keypackage_ref: hash(0xa1), state: State::Available }),
        ),
        "revoke_key_packages" => {
            of(json(&RevokeRequest { refs: Some(vec![hash(0xa1), hash(0xa2)]), all: None }), value(&revoked()))
        }
        "get_pool_status" => of(None, value(&PoolStatus { log: Some(log_head()), ..status() })),
        "get_user_pool_status" => of(None, value(&status())),
        "list_inventory" => of(None, value(&inventory())),
        "list_audit_events" => of(None, value(&audit())),
        "list_low_pools" => of(None, value(&low_pools())),
        "send_commit" => of(
            json(&commit()),
            value(&CommitResponse {
                epoch: 8,
                undelivered: vec![undelivered()],
                group_info_kept: false,
                receipts: Vec::new(),
            }),
        ),
        "list_groups" => {
            let groups = vec![ListedGroup { group_id: group(), epoch: 8, listed: true }];
            of(None, value(&GroupList { groups, next: None }))
        }
        "get_group_info" => of(None, value(&GroupInfoResponse { epoch: 8, group_info: message(), members: members() })),
        "keep_group_info" => of(
            json(&GroupInfoRequest {
                group_info: message(),
                members: members(),
                proof: Some(Base64Bytes(vec![1; 32])),
            }),
            value(&KeptGroupInfo { epoch: 8 }),
        ),
        "send_message" => of(
            json(&MessageRequest { message: message(), recipients: vec![named("bob", "phone")], expected_epoch: None }),
            value(&MessageResponse { undelivered: vec![undelivered()] }),
        ),
        "fetch_messages" => of(None, value(&MessagesPage { messages: vec![queued()], devices_version: 3 })),
        "acknowledge_messages" => {
            let request = AckRequest { ids: vec![4711], unreadable: Vec::new(), refused: Vec::new() };
            of(json(&request), value(&AckResponse { acknowledged: 1 }))
        }
        _ => None,
    }
}

fn json(request: &impl Serialize) -> Option<Value> {
    serde_json::to_value(request).ok()
}

fn value(response: &impl Serialize) -> Value {
    serde_json::to_value(response).unwrap_or_default()
}

fn user(name: &str) -> UserName {
    name.parse().unwrap_or_else(|_| unreachable!("{name} is a name"))
}

fn device(name: &str) -> DeviceName {
    name.parse().unwrap_or_else(|_| unreachable!("{name} is a name"))
}

fn named(name: &str, of: &str) -> DeviceOf {
    DeviceOf { user: user(name), device: device(of) }
}

fn hash(byte: u8) -> KeyPackageRef {
    vec![byte; 32].into()
}

fn group() -> Base64Bytes {
    Base64Bytes(b"friends".to_vec())
}

/// The reservation of the examples. Swagger UI replaces it by the last one that it saw.
pub(crate) fn reservation_id() -> ReservationId {
    ReservationId { owner: 31, nonce: Uuid::from_u128(0x67e5_5044_10b1_426f_9247_bb68_0e5f_e0c8) }
}

/// A time on the first of December 2026, so many seconds past noon.
fn time(second: i64) -> Timestamp {
    Timestamp::from_second(1_796_126_400 + second).unwrap_or_default()
}

fn not_after() -> Timestamp {
    time(14 * 86_400)
}

fn devices() -> DeviceList {
    DeviceList {
        user: user(OWNER),
        devices: vec![Device {
            device: device("laptop"),
            registered_at: time(0),
            removed_at: None,
            signature_keys: vec![SignatureKey {
                ciphersuite: 1,
                signature_key: Base64Bytes(vec![1; 32]),
                since: time(20),
            }],
            previous_signature_keys: vec![PreviousSignatureKey {
                ciphersuite: 1,
                signature_key: Base64Bytes(vec![2; 32]),
                since: time(1),
                until: time(20),
            }],
        }],
    }
}

fn uploaded() -> UploadResponse {
    let (keypackage_ref, ciphersuite, not_after, last_resort) = (hash(0xa1), 1, not_after(), false);
    UploadResponse {
        accepted: vec![AcceptedKeyPackage { index: 0, keypackage_ref, ciphersuite, not_after, last_resort }],
        rejected: vec![RejectedKeyPackage {
            index: 1,
            reason: RejectionReason::InvalidSignature,
            detail: "The signature of the KeyPackage does not verify. Sign it again.".to_owned(),
        }],
        changed_signature_keys: Vec::new(),
        replaced: 0,
        pool: status(),
    }
}

fn log() -> LogInfo {
    LogInfo {
        origin: LogOrigin {
            origin: LOG.to_owned(),
            path: "log/1-89abcdef".to_owned(),
            key: format!("{LOG}+89abcdef+AeK9MlN5zD1jX5QxGp0l0mJ8uXoQYb0Qm0nJf1dS5vXz"),
            first_entry: 0,
            key_note: None,
        },
        before: Vec::new(),
        retention: 10_368_000,
    }
}

fn proofs() -> ProofsRequest {
    let of = ProofOf { reservation_id: Some(reservation_id()), keypackage_ref: None };
    ProofsRequest { of: vec![of], receipt: false, since: Some(LogSize { origin: LOG.to_owned(), size: 17 }) }
}

fn log_head() -> LogHead {
    LogHead { checkpoint: CHECKPOINT.to_owned(), consistency: vec![Base64Bytes(vec![0xb3; 32])], heirs: Vec::new() }
}

fn proven() -> ProofsResponse {
    let hash = |byte: u8| Base64Bytes(vec![byte; 32]);
    let included = IncludedLeaf {
        leaf: Base64Bytes([&[1][..], &[0xa1; 64]].concat()),
        index: 7,
        path: vec![hash(0xb1), hash(0xb2)],
        opening: Some(LeafOpening { details: Base64Bytes(vec![0xc1; 96]), actor: Some(Base64Bytes(vec![0xc2; 96])) }),
        heirs: Vec::new(),
    };
    ProofsResponse {
        checkpoint: CHECKPOINT.to_owned(),
        proofs: vec![
            StepProof { tag: hash(0xd1), found: FoundStep::Included(included) },
            StepProof { tag: hash(0xd2), found: FoundStep::Pending },
        ],
        receipt: None,
        consistency: vec![hash(0xb3)],
        heirs: Vec::new(),
    }
}

fn bind() -> Base64Bytes {
    Base64Bytes(vec![0xb1; 32])
}

fn reserve() -> ReserveRequest {
    ReserveRequest {
        ciphersuite: Some(1),
        last_resort: Some(true),
        min_lifetime: Some(86_400),
        group_id: Some(group()),
        ttl: Some(60),
        bind: Some(bind()),
        ..ReserveRequest::of(user(OWNER))
    }
}

fn reserved() -> ReserveResponse {
    ReserveResponse {
        reservations: vec![Reservation {
            reservation_id: reservation_id(),
            user: user(OWNER),
            device: device("laptop"),
            keypackage_ref: hash(0xa1),
            keypackage: Base64Bytes(vec![0, 1, 0, 5, 0, 1, 0, 1]),
            ciphersuite: 1,
            not_after: not_after(),
            expires_at: time(60),
            last_resort: false,
            handout: Some(0),
            receipt: None,
        }],
        missing: vec![MissingDevice {
            user: user(OWNER),
            device: Some(device("watch")),
            reason: MissingReason::PoolExhausted,
            ciphersuites: Vec::new(),
        }],
    }
}

fn revoked() -> RevokeResponse {
    let ended = EndedKeyPackage { keypackage_ref: hash(0xa2), state: State::Spent };
    RevokeResponse { revoked: vec![hash(0xa1)], ended: vec![ended], unknown: Vec::new(), pool: status() }
}

fn status() -> PoolStatus {
    let last_resort = LastResortStatus { present: true, uses: 0 };
    let suite = SuiteStatus {
        ciphersuite: 1,
        available: 9,
        fresh: 8,
        lapsed: 1,
        reserved: 2,
        spent: 21,
        expired: 0,
        revoked: 0,
        total: 32,
        expiring_soon: 0,
        last_resort,
        health: Health::Good,
        recommended_upload: 24,
    };
    PoolStatus {
        user: user(OWNER),
        device: device("laptop"),
        at: time(0),
        min_remaining: 3_600,
        available: suite.available,
        fresh: suite.fresh,
        lapsed: suite.lapsed,
        reserved: suite.reserved,
        spent: suite.spent,
        expired: suite.expired,
        revoked: suite.revoked,
        total: suite.total,
        expiring_soon: suite.expiring_soon,
        last_upload: Some(time(0)),
        fenced_at: None,
        last_resort,
        health: suite.health,
        recommended_upload: suite.recommended_upload,
        inventory_digest: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855".to_owned(),
        draining: vec![Drain { user: user("mallory"), handed_out: 20 }],
        ciphersuites: vec![suite],
        log: None,
    }
}

fn inventory() -> InventoryPage {
    InventoryPage {
        keypackages: vec![InventoryItem {
            keypackage_ref: hash(0xa1),
            state: State::Spent,
            ciphersuite: 1,
            not_after: not_after(),
            last_resort: false,
            reservation_id: Some(reservation_id()),
            reserved_by: Some(named("bob", "phone")),
            reserved_until: Some(time(60)),
            spent_at: Some(time(2)),
            group_id: Some(group()),
        }],
        next: None,
    }
}

fn audit() -> AuditPage {
    AuditPage {
        events: vec![AuditEvent {
            id: 4711,
            at: time(0),
            action: Action::Reserve,
            keypackage_ref: hash(0xa1),
            owner: named(OWNER, "laptop"),
            actor: Some(named("bob", "phone")),
            reservation_id: Some(reservation_id()),
            group_id: Some(group()),
            last_resort: false,
            until: Some(time(60)),
            signature_key: None,
            handout: Some(0),
            leaves: 1,
        }],
        next: Some(4711),
        log: Some(LogSize { origin: LOG.to_owned(), size: 33 }),
    }
}

fn commit() -> CommitRequest {
    CommitRequest {
        commit: message(),
        welcome: Some(message()),
        proof: Some(Base64Bytes(vec![1; 32])),
        next_proof_digest: Some(Base64Bytes(vec![2; 32])),
        reservations: vec![reservation_id()],
        binds: vec![bind()],
        recipients: vec![named("bob", "phone")],
        group_info: None,
        members: Vec::new(),
    }
}

fn members() -> Vec<DeviceOf> {
    vec![named("alice", "laptop"), named("bob", "phone")]
}

fn message() -> Base64Bytes {
    Base64Bytes(vec![0, 1, 0, 2])
}

fn undelivered() -> Undelivered {
    Undelivered { user: user("carol"), device: device("tablet"), reason: UndeliveredReason::QueueFull }
}

fn queued() -> QueuedMessage {
    QueuedMessage {
        id: 4711,
        kind: MessageKind::Message,
        group_id: group(),
        from: named("bob", "phone"),
        message: message(),
        refusal: None,
        sent_at: time(0),
    }
}

fn low_pools() -> LowPools {
    let (ciphersuite, last_upload) = (Some(1), Some(time(0)));
    LowPools {
        pools: vec![LowPool { user: user(OWNER), device: device("laptop"), ciphersuite, fresh: 0, last_upload }],
        next: None,
    }
}

/// The operations of a path.
pub(super) fn operations(
    item: &mut utoipa::openapi::PathItem,
) -> impl Iterator<Item = &mut utoipa::openapi::path::Operation> {
    [&mut item.get, &mut item.post, &mut item.put, &mut item.patch, &mut item.delete].into_iter().flatten()
}
