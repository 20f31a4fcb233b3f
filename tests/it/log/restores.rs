//! A restored database continues its log under another name.

use std::time::Instant;

use keypool_openapi::ProblemType;
use keypool_transparency::{answers::Found, history::Succession, verdict::Verdict};
use rstest::rstest;
use serde_json::{Value, json};

use super::{
    checks::{policy, proofs, reserve},
    heads::{head, show},
};
use crate::{
    restore::{backed_up, operator_runs, serving},
    support::{Database, Device, Http, PATIENCE, ServerProcess},
};

/// Waits until the log has what is asked about, and returns the answers.
async fn logged(caller: &Http, of: &Value) -> keypool_transparency::answers::Answers {
    let patience = Instant::now() + PATIENCE;
    loop {
        let answers = proofs(caller, of.clone()).await;
        if answers.proofs.iter().all(|proof| !matches!(proof.found, Found::Pending)) {
            return answers;
        }
        assert!(Instant::now() < patience, "the log has not got {answers:?}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

#[rstest]
#[tokio::test]
async fn what_a_backup_has_stays_proven_under_a_new_name(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let place = db.migrated();
    let server = serving(&place).await;
    let anyone = Http::new(&server.base);
    let alice = anyone.registered("alice", "laptop").await;
    alice.uploaded(&Device::new("alice", "laptop").key_packages(3)).await;
    let bob = anyone.registered("bob", "phone").await;
    let mut kept = reserve(&bob, ("bob", "phone"), "alice", "friends").await;
    kept.spend().await;
    let of_kept = json!([{"reservation_id": kept.reservation["reservation_id"]}]);
    logged(&bob, &of_kept).await;
    let before = policy(&bob).await;
    let seen = head(&bob, None).await.checkpoint;
    let (place, backup) = backed_up(place).await;
    let lost = reserve(&bob, ("bob", "phone"), "alice", "friends").await;
    let of_lost = json!([{"reservation_id": lost.reservation["reservation_id"]}]);
    logged(&bob, &of_lost).await;
    let newer = head(&bob, None).await.checkpoint;
    let old = anyone.get("/log").await.ok();
    let address = server.address().to_owned();
    server.kill();
    let place = place.restored(&backup);
    let _server = ServerProcess::start_at(&place, &address).await;
    let new = anyone.get("/log").await.ok();
    assert_ne!(new["origin"]["origin"], old["origin"]["origin"], "the old name is signed again");
    assert_eq!(new["before"][0]["origin"], old["origin"]["origin"]);
    let path = old["origin"]["path"].as_str().unwrap();
    assert_eq!(anyone.get(&format!("/{path}/checkpoint")).await.status, 404);
    // By the key that it knew before, and the note that leads to the new one.
    let mut followed = before.clone();
    followed.follow(&new["origin"]["key_note"].as_str().unwrap().parse().unwrap()).unwrap();
    let answers = logged(&bob, &of_kept).await;
    // The newest checkpoint continues what the backup has, and says where it ends.
    let keys = followed.log_keys();
    let after = async |kept| head(&bob, Some(&keys.checkpoint(kept).unwrap())).await.succession(kept, &keys).unwrap();
    assert_eq!(after(&seen).await, Succession::Continues);
    let shortened = after(&newer).await;
    assert!(
        matches!(shortened, Succession::Shortened { kept } if kept >= keys.checkpoint(&seen).unwrap().size),
        "{shortened:?}"
    );
    assert_eq!(show(&bob, &seen).await.status, 204);
    show(&bob, &newer).await.is_problem(409, ProblemType::LogRolledBack);
    let heirs = |found: &Found| matches!(found, Found::Included { heirs, .. } if heirs.len() == 1);
    assert_eq!(answers.proofs.iter().filter(|proof| heirs(&proof.found)).count(), 2);
    let verdict = kept.verdict_of(&answers, &[], &followed);
    assert!(matches!(verdict, Verdict::Fine), "{verdict:?}");
    assert!(proofs(&bob, of_lost).await.proofs.is_empty(), "the backup does not know of it");
}

/// As after a restore of a backup that the operator also declares: no server has signed with the log between the two.
#[rstest]
#[tokio::test]
async fn two_restores_in_a_row_break_no_chain_of_keys(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let place = db.migrated();
    let server = serving(&place).await;
    let anyone = Http::new(&server.base);
    let alice = anyone.registered("alice", "laptop").await;
    let old = policy(&alice).await;
    let seen = head(&alice, None).await.checkpoint;
    let address = server.address().to_owned();
    server.kill();
    for _ in 0..2 {
        operator_runs(&place, "fence");
    }
    let _server = ServerProcess::start_at(&place, &address).await;
    let log = anyone.get("/log").await.ok();
    assert_eq!(log["before"].as_array().unwrap().len(), 2);
    let mut followed = old.clone();
    for origin in [&log["before"][0], &log["origin"]] {
        followed.follow(&origin["key_note"].as_str().unwrap().parse().unwrap()).unwrap();
    }
    let keys = followed.log_keys();
    let head = head(&alice, Some(&keys.checkpoint(&seen).unwrap())).await;
    assert_eq!(head.succession(&seen, &keys).unwrap(), Succession::Continues);
}
