//! Every problem and every rejection, provoked.

use futures_util::future::select_all;
use jiff::SignedDuration;
use keypool_openapi::{MAX_KEY_PACKAGE_SIZE, ProblemType, RejectionReason};
use keypool_server::config::{Config, Limits};
use openmls::prelude::Ciphersuite;
use rstest::rstest;
use serde_json::json;
use strum::IntoEnumIterator;

use crate::{
    log::{head, signed},
    support::{Answer, Database, Device, Http, TestServer, encode, tampered, with_the_keys_of},
};

const SUITE_3: Ciphersuite = Ciphersuite::MLS_128_DHKEMX25519_CHACHA20POLY1305_SHA256_Ed25519;

/// Alice with two KeyPackages in her pool, and Bob with a limit of three requests.
struct Scene {
    server: TestServer,
    alice: Http,
    device: Device,
    bob: Http,
}

impl Scene {
    async fn new(db: Database) -> Self {
        let server = TestServer::start_with(db, |config| {
            config.pool_capacity = 2;
            config.pair_burst = 3;
            config.queue_capacity = 16;
            config.ciphersuites = vec![1];
        })
        .await;
        let alice = server.anyone().registered("alice", "laptop").await;
        let bob = server.anyone().registered("bob", "phone").await;
        Self { server, alice, device: Device::new("alice", "laptop"), bob }
    }

    async fn upload(&self, n: usize) {
        self.alice.uploaded(&self.device.key_packages(n)).await;
    }

    /// A server that lets one request wait is asked for more than its workers have taken.
    async fn overload(&self) -> Answer {
        self.upload(2).await;
        let narrow = |config: &mut Config| (config.max_waiting_requests, config.limits) = (1, Limits::Off);
        let narrow = self.server.beside(narrow).await;
        let bob = self.bob.at(&narrow.base);
        let mut database = self.server.database();
        database.hold_all();
        let (answer, ..) = select_all((0..16).map(|_| Box::pin(bob.reserve("alice")))).await;
        database.run("COMMIT");
        assert!(answer.json["detail"].as_str().is_some_and(|detail| detail.contains("wait")), "{}", answer.text);
        answer
    }

    /// The database loses a table for a while.
    async fn breakage(&self) -> Answer {
        self.server.database().run("ALTER TABLE audit_events RENAME TO lost");
        let answer = self.alice.upload(&self.device.key_packages(1)).await;
        self.server.database().run("ALTER TABLE lost RENAME TO audit_events");
        assert!(!answer.text.contains("audit_events"), "the database is quoted: {}", answer.text);
        assert_eq!(self.alice.status().await["total"], 0, "half an upload is there");
        answer
    }
}

#[expect(clippy::too_many_lines, reason = "one arm for each problem")]
async fn provoke(kind: ProblemType, scene: &Scene) -> (u16, Answer) {
    use ProblemType as P;
    let Scene { server, alice, device, bob } = scene;
    match kind {
        P::MalformedRequest => (400, bob.post("/keypackages/reserve", &json!({"target_user": ""})).await),
        P::Unauthenticated => (401, server.anyone().get("/keypackages/status").await),
        P::Forbidden => (403, bob.register("alice", "phone").await),
        P::UnknownUser => (404, bob.reserve("nobody").await),
        P::UnknownDevice => (404, alice.delete("/devices/phone").await),
        P::UnknownReservation => {
            let never = json!({"reservation_id": "1-67e55044-10b1-426f-9247-bb680e5fe0c8"});
            (404, bob.release(&never).await)
        }
        P::UnknownGroup => {
            let mut party = Device::new("bob", "phone").founds("friends");
            let body = json!({"message": encode(&party.says("hello")), "recipients": []});
            (404, bob.post("/groups/ZnJpZW5kcw/messages", &body).await)
        }
        P::StaleEpoch => {
            let commit = || encode(&Device::new("bob", "phone").founds("friends").updates());
            bob.post("/groups/ZnJpZW5kcw/commits", &json!({"commit": commit()})).await.ok();
            (409, bob.post("/groups/ZnJpZW5kcw/commits", &json!({"commit": commit()})).await)
        }
        P::NotFound => (404, bob.get("/keypackages").await),
        P::MethodNotAllowed => {
            let answer = bob.delete("/keypackages/status").await;
            assert_eq!(answer.header("allow"), Some("GET, HEAD"));
            (405, answer)
        }
        P::PoolExhausted => (404, bob.reserve("alice").await),
        P::PoolExpired => {
            scene.upload(1).await;
            server.advance(SignedDuration::from_hours(14 * 24) - SignedDuration::from_mins(59));
            (404, bob.reserve("alice").await)
        }
        P::NoMatchingCiphersuite => {
            scene.upload(1).await;
            (404, bob.post("/keypackages/reserve", &json!({"target_user": "alice", "ciphersuite": 3})).await)
        }
        P::AlreadyRegistered => (409, alice.register("alice", "laptop").await),
        P::AlreadySpent => {
            scene.upload(1).await;
            let reservation = bob.reserved("alice").await;
            bob.spend(&reservation, "friends").await.ok();
            (409, bob.spend(&reservation, "others").await)
        }
        P::ReservationLapsed => {
            scene.upload(1).await;
            let reservation = bob.reserved("alice").await;
            alice.post("/keypackages/revoke", &json!({"all": true})).await.ok();
            (409, bob.spend(&reservation, "friends").await)
        }
        P::NotYourReservation => {
            scene.upload(1).await;
            let reservation = bob.reserved("alice").await;
            (403, alice.spend(&reservation, "friends").await)
        }
        P::LogRolledBack => {
            server.sequence().await;
            let larger = signed(server, &head(bob, None).await.checkpoint, |checkpoint| checkpoint.size += 1);
            (409, bob.post("/log/checkpoint", &json!({"checkpoint": larger})).await)
        }
        P::LogForked => {
            server.sequence().await;
            let other = signed(server, &head(bob, None).await.checkpoint, |checkpoint| checkpoint.root = [7; 32]);
            (409, bob.post("/log/checkpoint", &json!({"checkpoint": other})).await)
        }
        P::PoolFull => {
            scene.upload(2).await;
            (409, alice.upload(&device.key_packages(2)).await)
        }
        P::QueueFull => {
            // Bob's share of a queue is two messages, and a last resort costs nobody anything.
            alice.uploaded(&[device.last_resort()]).await;
            let mut party = Device::new("bob", "phone").founds("friends");
            let path = |what: &str| format!("/groups/ZnJpZW5kcw/{what}");
            bob.post(&path("commits"), &json!({"commit": encode(&party.updates())})).await.ok();
            party.merges();
            for _ in 0..2 {
                let recipients = json!([{"user": "alice", "device": "laptop"}]);
                let message = encode(&party.says("hello"));
                bob.post(&path("messages"), &json!({"message": message, "recipients": recipients})).await.ok();
            }
            let reservation = bob.reserved("alice").await;
            let (commit, welcome) = party.adds(&[&reservation]);
            let body = json!({"commit": encode(&commit), "welcome": encode(&welcome),
                "reservations": [reservation["reservation_id"]]});
            (409, bob.post(&path("commits"), &body).await)
        }
        P::PayloadTooLarge => {
            let large = json!({"target_user": "alice", "group_id": "A".repeat(128 * 1024)});
            (413, bob.post("/keypackages/reserve", &large).await)
        }
        P::UnsupportedMediaType => (415, bob.with_header("content-encoding", "gzip").reserve("alice").await),
        P::IdempotencyMismatch => {
            scene.upload(2).await;
            let bob = bob.with_key("one");
            bob.reserve("alice").await.ok();
            (422, bob.post("/keypackages/reserve", &json!({"target_user": "alice", "ttl": 5})).await)
        }
        P::TooManyRequests => {
            alice.uploaded(&[device.last_resort()]).await;
            for _ in 0..3 {
                bob.reserved("alice").await;
            }
            (429, bob.reserve("alice").await)
        }
        P::Unavailable => (503, scene.overload().await),
        P::Internal => (500, scene.breakage().await),
    }
}

#[rstest]
#[tokio::test]
async fn every_problem_can_be_met(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    for kind in ProblemType::iter() {
        let scene = Scene::new(db).await;
        let (status, answer) = provoke(kind, &scene).await;
        answer.is_problem(status, kind);
    }
}

/// An upload whose last KeyPackage breaks the rule, and no other.
fn breaking(reason: RejectionReason) -> Vec<Vec<u8>> {
    use RejectionReason as R;
    let device = || Device::new("alice", "laptop");
    let lasting = |from: i64, to: i64| {
        let hours = |hours| crate::support::now() + SignedDuration::from_hours(hours);
        vec![device().valid_between(hours(from), hours(to)).key_package()]
    };
    let days = 24;
    match reason {
        R::SignatureKeyMismatch => vec![device().key_package(), device().with_new_key().key_package()],
        R::Malformed => {
            let package = device().key_package();
            vec![package[..package.len() - 1].to_vec()]
        }
        R::InvalidSignature => {
            let package = device().key_package();
            vec![tampered(&package, package.len() - 1)]
        }
        R::CredentialMismatch => vec![Device::new("alice", "phone").key_package()],
        R::LifetimeExpired => lasting(-2 * days, -1),
        R::NeverAvailable => {
            let (now, minute) = (crate::support::now(), SignedDuration::from_mins(1));
            vec![device().valid_between(now - minute, now + minute * 59).key_package()]
        }
        R::LifetimeNotYetValid => lasting(2, 2 * days),
        R::LifetimeTooLong => lasting(-1, 90 * days),
        R::UnsupportedCiphersuite => vec![device().of_suite(SUITE_3).key_package()],
        R::UnsupportedCredential => vec![device().listing_another_credential().key_package()],
        R::UnsupportedExtension => vec![device().with_extension(1, false).key_package()],
        R::InitKeyReused => {
            let device = device();
            let package = device.key_package();
            let reused = with_the_keys_of(&package, &device);
            vec![package, reused]
        }
        R::Duplicate => vec![device().key_package(); 2],
        R::TooLarge => vec![device().with_extension(MAX_KEY_PACKAGE_SIZE, true).key_package()],
        R::PoolFull => device().key_packages(3),
        R::SecondLastResort => {
            let device = device();
            vec![device.last_resort(), device.last_resort()]
        }
    }
}

#[rstest]
#[tokio::test]
async fn every_rejection_can_be_met(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let Scene { server: _server, alice, .. } = Scene::new(db).await;
    let mut taken = 0;
    for reason in RejectionReason::iter() {
        let batch = breaking(reason);
        let bad = batch.len() - 1;
        let answer = alice.upload(&batch).await.ok();
        let rejected = &answer["rejected"];
        assert_eq!(rejected.as_array().unwrap().len(), 1, "{reason}: {rejected}");
        assert_eq!((&rejected[0]["index"], &rejected[0]["reason"]), (&json!(bad), &json!(reason)), "{rejected}");
        assert!(rejected[0]["detail"].as_str().is_some_and(|detail| detail.ends_with('.')), "{rejected}");
        assert_eq!(answer["accepted"].as_array().unwrap().len(), bad, "{reason}: {answer}");
        let inventory = alice.get("/keypackages/inventory").await.ok();
        taken += bad;
        assert_eq!(inventory["keypackages"].as_array().unwrap().len(), taken, "{reason}: what was rejected is there");
        alice.post("/keypackages/revoke", &json!({"all": true})).await.ok();
    }
}

/// An extension makes a KeyPackage too large by its size, and unsupported if the leaf does not list it.
#[rstest]
#[tokio::test]
async fn what_nearly_breaks_a_rule_is_taken(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let Scene { server: _server, alice, .. } = Scene::new(db).await;
    let device = || Device::new("alice", "laptop");
    let rest = device().with_extension(32 * 1024, true).key_package().len() - 32 * 1024;
    let largest = device().with_extension(MAX_KEY_PACKAGE_SIZE - rest, true).key_package();
    assert_eq!(largest.len(), MAX_KEY_PACKAGE_SIZE);
    let second = |n: i64| SignedDuration::from_secs(n);
    let day = SignedDuration::from_hours(24);
    let now = crate::support::now();
    let longest = device().valid_between(now - day, now + day * 89);
    let one_more = device().valid_between(now - day, now + day * 89 + second(1));
    alice.uploaded(&[largest, longest.key_package()]).await;
    alice.post("/keypackages/revoke", &json!({"all": true})).await.ok();
    let answer = alice.upload(&[one_more.key_package()]).await.ok();
    assert_eq!(answer["rejected"][0]["reason"], "lifetime-too-long");
    let none = alice.post("/keypackages/upload", &json!({"keypackages": ["not base64", encode(b"")]})).await.ok();
    assert_eq!(none["rejected"].as_array().unwrap().len(), 2);
}
