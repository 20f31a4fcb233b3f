//! Groups whose newest Commits are lost with a restore.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::SignedDuration;
use keypool_openapi::ProblemType;
use rstest::rstest;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::{backed_up, fresh, restored, serving};
use crate::support::{Answer, Database, Http, Owner, TestServer, encode};

/// A `PrivateMessage` that says it is a Commit, of any epoch: the server reads no more of one.
fn forged(group_id: &[u8], epoch: u64) -> Vec<u8> {
    let mut bytes = vec![0, 1, 0, 2, u8::try_from(group_id.len()).unwrap()];
    bytes.extend(group_id);
    bytes.extend(epoch.to_be_bytes());
    bytes.extend([3, 0, 0, 0]);
    bytes
}

async fn commit(http: &Http, group_id: &[u8], epoch: u64, proof: Option<[u8; 32]>, next: Option<[u8; 32]>) -> Answer {
    let path = format!("/groups/{}/commits", URL_SAFE_NO_PAD.encode(group_id));
    let body = json!({
        "commit": encode(&forged(group_id, epoch)),
        "proof": proof.map(|proof| encode(&proof)),
        "next_proof_digest": next.map(|next| encode(&Sha256::digest(next))),
        "recipients": [],
    });
    http.post(&path, &body).await
}

fn is_stale(answer: &Answer, epoch: u64) {
    answer.is_problem(409, ProblemType::StaleEpoch);
    assert_eq!(answer.json["epoch"], epoch);
}

const PROOF: [u8; 32] = [7; 32];

#[rstest]
#[tokio::test]
async fn after_a_fence_a_commit_skips_64_epochs_at_most_and_shows_the_proof_that_is_known(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
    #[values(false, true)] has_proofs: bool,
) {
    let server = TestServer::start(db).await;
    let alice = server.anyone().registered("alice", "laptop").await;
    let right = has_proofs.then_some(PROOF);
    commit(&alice, b"friends", 0, None, right).await.ok();
    // Nothing was restored.
    is_stale(&commit(&alice, b"friends", 2, right, right).await, 1);
    server.store().fence().unwrap();
    server.advance(SignedDuration::from_secs(1));

    for epoch in [66, 1 << 62, (1 << 63) - 2] {
        for proof in [None, right, Some([8; 32])] {
            is_stale(&commit(&alice, b"friends", epoch, proof, None).await, 1);
        }
    }
    if has_proofs {
        for proof in [None, Some([8; 32])] {
            for epoch in [2, 65] {
                is_stale(&commit(&alice, b"friends", epoch, proof, None).await, 1);
            }
            commit(&alice, b"friends", 1, proof, None).await.is_problem(403, ProblemType::Forbidden);
        }
    }
    assert_eq!(commit(&alice, b"friends", 65, right, right).await.ok()["epoch"], 66);
    // It is answered again, and nothing is skipped any more.
    assert_eq!(commit(&alice, b"friends", 65, right, right).await.ok()["epoch"], 66);
    is_stale(&commit(&alice, b"friends", 67, right, right).await, 66);
    assert_eq!(commit(&alice, b"friends", 66, right, right).await.ok()["epoch"], 67);
}

/// A former member, removed before the backup, cannot take the group by its id, and the members go on by themselves.
#[rstest]
#[tokio::test]
async fn members_go_on_after_a_restore_and_former_members_do_not(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let place = fresh(db).await;
    let server = serving(&place).await;
    let base = server.base.clone();
    let (alice, bob, mallory) =
        (Owner::at(&base, "alice").await, Owner::at(&base, "bob").await, Owner::at(&base, "mallory").await);
    let group = alice.membership().create_named_group("friends").unwrap();
    let id = &group.group_id;
    alice.membership().invite(id, &["bob".parse().unwrap(), "mallory".parse().unwrap()]).await.unwrap();
    mallory.hears().await;
    alice.membership().remove(id, &"mallory".parse().unwrap()).await.unwrap();
    let (place, backup) = backed_up(place).await;
    for _ in 0..3 {
        alice.membership().update_keys(id).await.unwrap();
    }
    bob.hears().await;
    let epoch = |owner: &Owner| owner.membership().load_group(id).unwrap().epoch().as_u64();
    assert_eq!((epoch(&alice), epoch(&bob)), (5, 5));
    let (server, place) = restored(server, place, backup).await;

    for forged in [1 << 62, 66, 5, 3] {
        is_stale(&commit(&mallory.http(), id, forged, None, None).await, 2);
        is_stale(&commit(&mallory.http(), id, forged, Some([8; 32]), None).await, 2);
    }
    commit(&mallory.http(), id, 2, Some([8; 32]), None).await.is_problem(403, ProblemType::Forbidden);

    bob.membership().update_keys(id).await.unwrap();
    alice.hears().await;
    assert_eq!((epoch(&alice), epoch(&bob)), (6, 6));
    alice.membership().update_keys(id).await.unwrap();
    alice.membership().send(id, "here we are").await.unwrap();
    assert_eq!(bob.texts().await, [("alice/laptop".to_owned(), "here we are".to_owned())]);
    drop((server, place));
}

/// The GroupInfo in the backup is of an epoch that the members have left. Who came back by it would be there alone, and the
/// members could not show the proof that the next Commit asks for.
#[rstest]
#[tokio::test]
async fn after_a_fence_nobody_comes_back_before_a_member_has_committed(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let place = fresh(db).await;
    let server = serving(&place).await;
    let base = server.base.clone();
    let (alice, bob) = (Owner::at(&base, "alice").await, Owner::at(&base, "bob").await);
    let group = alice.membership().create_named_group("friends").unwrap();
    let id = &group.group_id;
    alice.membership().invite(id, &["bob".parse().unwrap()]).await.unwrap();
    bob.hears().await;
    let behind = bob.copied();
    alice.membership().update_keys(id).await.unwrap();
    // In the backup, his queue is empty.
    bob.hears().await;
    let (place, backup) = backed_up(place).await;
    for _ in 0..3 {
        alice.membership().update_keys(id).await.unwrap();
    }
    let (server, place) = restored(server, place, backup).await;

    let refused = behind.membership().come_back(id).await.unwrap_err();
    assert_eq!(refused.problem(), Some(ProblemType::UnknownGroup), "{refused}");
    alice.membership().update_keys(id).await.unwrap();
    behind.membership().come_back(id).await.unwrap();
    behind.membership().send(id, "back").await.unwrap();
    assert_eq!(alice.texts().await, [("bob/laptop".to_owned(), "back".to_owned())]);
    drop((server, place));
}

/// As many epochs as a server lets a Commit skip, and one more.
#[rstest]
#[tokio::test]
async fn a_client_has_the_proof_that_a_restored_server_asks_for(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
    #[values(1, 64, 65)] lost: usize,
) {
    let server = TestServer::start(db).await;
    let alice = Owner::of(&server, "alice").await;
    let group = alice.membership().create_named_group("friends").unwrap();
    for _ in 0..=lost {
        alice.membership().update_keys(&group.group_id).await.unwrap();
    }
    server.database().run("DELETE FROM commits WHERE epoch > 0");
    server.store().fence().unwrap();
    server.advance(SignedDuration::from_secs(1));
    let outcome = alice.membership().update_keys(&group.group_id).await;
    if lost <= 64 {
        outcome.unwrap();
        alice.membership().update_keys(&group.group_id).await.unwrap();
    } else {
        assert_eq!(outcome.unwrap_err().problem(), Some(ProblemType::StaleEpoch));
    }
}
