//! The newest checkpoint, how it continues those that clients have seen, and clients that show theirs.

use std::fs;

use keypool_openapi::ProblemType;
use keypool_transparency::{
    checkpoint::Checkpoint,
    history::{Head, Succession},
    merkle::empty_root,
    note::Note,
    origin::Origin,
    policy::LogKeys,
};
use rstest::rstest;
use serde_json::{Value, json};

use super::checks::{is_whole, policy, reserve};
use crate::support::{Answer, Database, Device, Http, TestServer};

/// The checkpoint in a status, and how it continues the one that the caller has.
pub async fn head(caller: &Http, kept: Option<&Checkpoint>) -> Head {
    let query = kept.map_or(String::new(), |kept| format!("?log_origin={}&log_size={}", kept.origin, kept.size));
    let status = caller.get(&format!("/keypackages/status{query}")).await.ok();
    serde_json::from_value(status["log"].clone()).unwrap()
}

/// Shows the server a checkpoint that a client has.
pub async fn show(caller: &Http, note: &Note) -> Answer {
    caller.post("/log/checkpoint", &json!({"checkpoint": note.to_string()})).await
}

/// A changed checkpoint, which the server's key file signs.
pub fn signed(server: &TestServer, newest: &Note, change: impl FnOnce(&mut Checkpoint)) -> Note {
    let mut checkpoint = Checkpoint::unverified(newest).unwrap();
    change(&mut checkpoint);
    let place = server.place();
    let path = place.log_key().unwrap_or_else(|| format!("{}.log-key", &place.url["sqlite://".len()..]).into());
    let mut file_key = [0; 32];
    hex::decode_to_slice(fs::read_to_string(path).unwrap().trim(), &mut file_key).unwrap();
    let origin: Origin = checkpoint.origin.parse().unwrap();
    checkpoint.sign(&origin.key(&file_key).unwrap()).unwrap()
}

struct Scene {
    server: TestServer,
    alice: Http,
    bob: Http,
    keys: LogKeys,
}

async fn scene(db: Database) -> Scene {
    let server = TestServer::start(db).await;
    let alice = server.anyone().registered("alice", "laptop").await;
    alice.uploaded(&Device::new("alice", "laptop").key_packages(10)).await;
    let bob = server.anyone().registered("bob", "phone").await;
    server.sequence().await;
    let keys = policy(&bob).await.log_keys();
    Scene { server, alice, bob, keys }
}

impl Scene {
    async fn grow(&self) {
        reserve(&self.bob, ("bob", "phone"), "alice", "friends").await;
        is_whole(&self.server).await;
    }

    fn signed(&self, newest: &Note, change: impl FnOnce(&mut Checkpoint)) -> Note {
        signed(&self.server, newest, change)
    }
}

#[rstest]
#[tokio::test]
async fn a_status_continues_every_checkpoint_that_a_client_has(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let scene = scene(db).await;
    let mut kept = Vec::new();
    for _ in 0..4 {
        kept.push(head(&scene.alice, None).await.checkpoint);
        scene.grow().await;
    }
    let newest = head(&scene.alice, None).await;
    assert!(newest.consistency.is_empty() && newest.heirs.is_empty());
    for old in &kept {
        let seen = scene.keys.checkpoint(old).unwrap();
        let head = head(&scene.alice, Some(&seen)).await;
        assert_eq!(head.checkpoint, newest.checkpoint);
        assert!(!head.consistency.is_empty() && head.heirs.is_empty());
        assert_eq!(head.succession(old, &scene.keys), Ok(Succession::Continues), "from {}", seen.size);
    }
    let latest = scene.keys.checkpoint(&newest.checkpoint).unwrap();
    let equal = head(&scene.alice, Some(&latest)).await;
    assert_eq!(equal.succession(&newest.checkpoint, &scene.keys), Ok(Succession::Continues));
    for strange in [
        Checkpoint { size: 0, ..latest.clone() },
        Checkpoint { size: latest.size + 1, ..latest.clone() },
        Checkpoint { size: 1 << 62, ..latest.clone() },
        Checkpoint { origin: latest.origin.replace("/1-", "/7-"), ..latest.clone() },
    ] {
        let head = head(&scene.alice, Some(&strange)).await;
        assert_eq!(head, newest, "{strange:?}");
    }
}

#[rstest]
#[tokio::test]
async fn a_checkpoint_is_named_in_full_or_not_at_all(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let Scene { server: _server, alice, .. } = scene(db).await;
    for bad in [
        "log_size=7",
        "log_origin=keypool/0123456789abcdef/1-89abcdef",
        "log_origin=keypool&log_size=7",
        "log_origin=keypool/0123456789abcdef/1-89abcdef&log_size=-1",
        "log_origin=keypool/0123456789abcdef/1-89abcdef&log_size=9223372036854775808",
        "log_origin=keypool/0123456789ABCDEF/1-89abcdef&log_size=7",
        "since=7",
    ] {
        let answer = alice.get(&format!("/keypackages/status?{bad}")).await;
        answer.is_problem(400, ProblemType::MalformedRequest);
    }
    for bad in [json!({"origin": "keypool", "size": 7}), json!({"size": 7}), json!(7)] {
        let body = json!({"of": [{"keypackage_ref": "ab".repeat(32)}], "since": bad});
        alice.post("/log/proofs", &body).await.is_problem(400, ProblemType::MalformedRequest);
    }
}

#[rstest]
#[tokio::test]
async fn proofs_continue_the_checkpoint_of_a_status(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let scene = scene(db).await;
    let kept = head(&scene.bob, None).await.checkpoint;
    let seen = scene.keys.checkpoint(&kept).unwrap();
    let handed = reserve(&scene.bob, ("bob", "phone"), "alice", "friends").await;
    is_whole(&scene.server).await;
    let body = json!({
        "of": [{"reservation_id": handed.reservation["reservation_id"]}],
        "since": {"origin": seen.origin, "size": seen.size},
    });
    let answer = scene.bob.post("/log/proofs", &body).await.ok();
    let answers: keypool_transparency::answers::Answers = serde_json::from_value(answer).unwrap();
    answers.check(&scene.keys).unwrap();
    assert_ne!(answers.checkpoint, kept);
    assert_eq!(answers.head().succession(&kept, &scene.keys), Ok(Succession::Continues));
    assert_eq!(answers.head(), head(&scene.bob, Some(&seen)).await);
}

/// The database has what a client has seen, or else it went back or was copied.
#[rstest]
#[tokio::test]
async fn a_checkpoint_that_the_log_does_not_continue_is_refused(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let scene = scene(db).await;
    let mut kept = Vec::new();
    for _ in 0..3 {
        kept.push(head(&scene.alice, None).await.checkpoint);
        scene.grow().await;
    }
    let newest = head(&scene.alice, None).await.checkpoint;
    kept.push(newest.clone());
    kept.push(scene.signed(&newest, |checkpoint| (checkpoint.size, checkpoint.root) = (0, empty_root())));
    for note in &kept {
        let answer = show(&scene.bob, note).await;
        assert_eq!((answer.status, answer.text.as_str()), (204, ""), "{note}");
    }
    let refused: [(fn(&mut Checkpoint), _); 5] = [
        (|checkpoint| checkpoint.size += 1, ProblemType::LogRolledBack),
        (|checkpoint| checkpoint.origin = checkpoint.origin.replace("/1-", "/2-"), ProblemType::LogRolledBack),
        (|checkpoint| checkpoint.root[0] ^= 1, ProblemType::LogForked),
        (|checkpoint| checkpoint.size -= 1, ProblemType::LogForked),
        (|checkpoint| checkpoint.size = 0, ProblemType::LogForked),
    ];
    for (change, kind) in refused {
        show(&scene.bob, &scene.signed(&newest, change)).await.is_problem(409, kind);
    }
}

#[rstest]
#[tokio::test]
async fn nobody_can_invent_a_checkpoint(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let scene = scene(db).await;
    let newest = head(&scene.alice, None).await.checkpoint;
    let origin: Origin = scene.keys.checkpoint(&newest).unwrap().origin.parse().unwrap();
    let larger = Checkpoint { origin: origin.to_string(), size: 1_000, root: [7; 32] };
    let invented = larger.sign(&origin.key(&[7; 32]).unwrap()).unwrap().to_string();
    let unsigned = newest.text().to_owned();
    let cut = invented.replace("\n1000\n", "\n2000\n");
    for bad in [invented, unsigned, cut, "keypool".to_owned(), String::new()] {
        let answer = scene.bob.post("/log/checkpoint", &json!({"checkpoint": bad})).await;
        answer.is_problem(400, ProblemType::MalformedRequest);
    }
    let answer = scene.server.anyone().post("/log/checkpoint", &Value::Null).await;
    answer.is_problem(401, ProblemType::Unauthenticated);
}
