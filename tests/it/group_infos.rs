//! The GroupInfo of a group: kept with a Commit or after it, for the devices in the group, and never of another epoch.

use keypool_openapi::ProblemType;
use rstest::rstest;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::{Anywhere, Device, TestServer, decode, encode};

fn named(users: &[&str]) -> Value {
    users.iter().map(|user| json!({"user": user, "device": "laptop"})).collect()
}

/// The digest that a Commit asks the next one to show, of a proof of 32 equal bytes.
fn digest(proof: u8) -> String {
    encode(&Sha256::digest([proof; 32]))
}

#[rstest]
#[tokio::test]
async fn a_group_info_is_of_the_newest_epoch_and_for_the_devices_in_the_group(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = TestServer::start(db).await;
    let alice = server.anyone().registered("alice", "laptop").await;
    let bob = server.anyone().registered("bob", "laptop").await;
    let mallory = server.anyone().registered("mallory", "laptop").await;
    let mut party = Device::new("alice", "laptop").founds("friends");
    let (commits, info) = (format!("/groups/{}/commits", party.path()), format!("/groups/{}/info", party.path()));

    let commit = encode(&party.updates());
    party.merges();
    let first = party.group_info();
    let mut body = json!({
        "commit": commit, "group_info": encode(&first), "members": named(&["bob"]), "next_proof_digest": digest(1),
    });
    alice.post(&commits, &body).await.is_problem(400, ProblemType::MalformedRequest);
    body["members"] = named(&["alice", "bob"]);
    assert_eq!(alice.post(&commits, &body).await.ok()["group_info_kept"], true);
    for member in [&alice, &bob] {
        let kept = member.get(&info).await.ok();
        assert_eq!((&kept["epoch"], &kept["members"]), (&json!(1), &named(&["alice", "bob"])));
        assert_eq!(decode(kept["group_info"].as_str().unwrap()), first);
        let listed = json!([{"group_id": encode(b"friends"), "epoch": 1, "listed": true}]);
        assert_eq!(member.get("/groups").await.ok()["groups"], listed);
    }
    mallory.get(&info).await.is_problem(404, ProblemType::UnknownGroup);

    // A Commit without one ends it, and a member sends the next one later.
    let commit = encode(&party.updates());
    party.merges();
    let body = json!({"commit": commit, "proof": encode(&[1; 32]), "next_proof_digest": digest(2)});
    assert_eq!(alice.post(&commits, &body).await.ok()["group_info_kept"], false);
    alice.get(&info).await.is_problem(404, ProblemType::UnknownGroup);
    let later = |bytes: &[u8], proof: u8| json!({"group_info": encode(bytes), "members": named(&["alice", "bob"]), "proof": encode(&[proof; 32])});
    let second = party.group_info();
    alice.put(&info, &later(&first, 2)).await.is_problem(409, ProblemType::StaleEpoch);
    for outsider in [&alice, &bob] {
        outsider.put(&info, &later(&second, 1)).await.is_problem(403, ProblemType::Forbidden);
    }
    assert_eq!(bob.put(&info, &later(&second, 2)).await.ok(), json!({"epoch": 2}));
    assert_eq!(alice.get(&info).await.ok()["epoch"], 2);
}
