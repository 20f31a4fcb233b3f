//! An owner's trail is what the log has.

use std::collections::HashMap;

use jiff::SignedDuration;
use keypool_openapi::{Action, AuditEvent, AuditPage};
use keypool_server::config::Limits;
use keypool_transparency::{
    commitment::Event,
    key_package::KeyPackageFields,
    owner::{self, OwnPackage, TrailRow},
    package::{PackageId, ReservationId},
    verdict::{Problem, Verdict},
};
use rstest::rstest;
use serde_json::json;

use super::checks::{is_whole, policy, proofs, reserve};
use crate::support::{Database, Device, Http, TestServer};

const BOB: (&str, &str) = ("bob", "phone");

/// The caller's trail, the oldest event first, and the size of the log that came with it.
async fn trail(caller: &Http) -> (Vec<AuditEvent>, u64) {
    let (mut events, mut before, mut as_of) = (Vec::new(), String::new(), None);
    loop {
        let page = caller.get(&format!("/keypackages/audit?limit=7{before}")).await.ok();
        let page: AuditPage = serde_json::from_value(page).unwrap();
        as_of = as_of.or(page.log.map(|log| log.size));
        events.extend(page.events);
        let Some(next) = page.next else { break };
        before = format!("&before={next}");
    }
    events.reverse();
    (events, as_of.unwrap())
}

fn event(action: Action) -> Event {
    match action {
        Action::Reserve => Event::Reserve,
        Action::Spend => Event::Spend,
        Action::Release => Event::Release,
        Action::Lapse => Event::Lapse,
        Action::Revoke => Event::Revoke,
        other => panic!("{other} has no leaf"),
    }
}

/// The rows of an event: two if it is the beginning of its hand-out, too.
fn rows(event_of: &AuditEvent) -> Vec<TrailRow> {
    if event_of.leaves == 0 {
        return Vec::new();
    }
    let (actor, group_id) = match event_of.action {
        Action::Spend => (event_of.actor.as_ref(), event_of.group_id.clone().unwrap().0),
        // The actor of a revocation is the owner or the operator.
        Action::Revoke => (None, Vec::new()),
        _ => (event_of.actor.as_ref(), Vec::new()),
    };
    let id = event_of.reservation_id.map(|id| ReservationId::new(id.owner, *id.nonce.as_bytes()));
    let row = TrailRow {
        event: event(event_of.action),
        n: event_of.handout,
        at: event_of.at.as_second().try_into().unwrap(),
        actor: actor.map_or(String::new(), ToString::to_string),
        group_id,
        reservation_id: id.unwrap_or_default(),
    };
    match event_of.leaves {
        1 => vec![row],
        _ => vec![TrailRow { event: Event::Reserve, group_id: Vec::new(), ..row.clone() }, row],
    }
}

/// Alice's packages, each as she knows it.
async fn own(alice: &Http, packages: &[Vec<u8>]) -> Vec<(String, OwnPackage)> {
    let uploaded = alice.upload(packages).await.ok();
    let accepted = uploaded["accepted"].as_array().unwrap();
    assert_eq!(accepted.len(), packages.len(), "{uploaded}");
    let package = |(bytes, accepted): (&Vec<u8>, &serde_json::Value)| {
        let package = PackageId::of(&KeyPackageFields::parse(bytes).unwrap());
        let own = OwnPackage {
            package,
            owner: "alice/laptop".to_owned(),
            rows: Vec::new(),
            as_of: 0,
            welcomes: Vec::new(),
            receipts: Vec::new(),
        };
        (accepted["keypackage_ref"].as_str().unwrap().to_owned(), own)
    };
    packages.iter().zip(accepted).map(package).collect()
}

/// Fills in what the trail says, and checks each package.
async fn verdicts(alice: &Http, packages: &[(String, OwnPackage)]) -> Vec<Verdict> {
    let (events, as_of) = trail(alice).await;
    let mut all: HashMap<_, Vec<_>> = HashMap::new();
    for one in &events {
        all.entry(one.keypackage_ref.to_string()).or_default().extend(rows(one));
    }
    let policy = policy(alice).await;
    let mut verdicts = Vec::new();
    for (keypackage_ref, own) in packages {
        let rows = all.get(keypackage_ref).cloned().unwrap_or_default();
        let own = OwnPackage { rows, as_of, ..own.clone() };
        let answers = proofs(alice, json!([{"keypackage_ref": keypackage_ref}])).await;
        verdicts.push(owner::check(&own, &answers.check(&policy.log_keys()).unwrap(), &policy));
    }
    verdicts
}

#[rstest]
#[tokio::test]
async fn a_trail_of_every_step_is_what_the_log_has(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start_with(db, |config| config.limits = Limits::Off).await;
    let alice = server.anyone().registered("alice", "laptop").await;
    let bob = server.anyone().registered("bob", "phone").await;
    let device = Device::new("alice", "laptop");
    let reserve = async || reserve(&bob, BOB, "alice", "friends").await;
    let minutes = |n| server.advance(SignedDuration::from_mins(n));
    // At rest, for all its life.
    let mut packages = own(&alice, &[device.key_package()]).await;
    alice.post("/keypackages/revoke", &json!({"all": true})).await.ok();
    // Spent, for another group than it was reserved for.
    packages.extend(own(&alice, &[device.key_package()]).await);
    let other = reserve().await;
    bob.spend(&other.reservation, "club").await.ok();
    // Released, lapsed, reserved again before the sweeper comes, and spent in time.
    packages.extend(own(&alice, &[device.key_package()]).await);
    reserve().await.release().await;
    minutes(1);
    reserve().await;
    minutes(3);
    reserve().await.spend().await;
    // Lapsed, and spent late, once with the lapse recorded and once without.
    for is_swept in [true, false] {
        packages.extend(own(&alice, &[device.key_package()]).await);
        let mut late = reserve().await;
        minutes(5);
        if is_swept {
            server.sweep().await;
        }
        late.spend().await;
    }
    // Revoked while it is held, and after it lapsed.
    for lapses in [false, true] {
        packages.extend(own(&alice, &[device.key_package()]).await);
        reserve().await;
        if lapses {
            minutes(7);
        }
        alice.post("/keypackages/revoke", &json!({"all": true})).await.ok();
    }
    // By a Commit's reservation without random bytes.
    packages.extend(own(&alice, &[device.key_package()]).await);
    let plain = bob.reserved("alice").await;
    bob.spend(&plain, "friends").await.ok();
    // A last resort, used three times and spent twice.
    packages.extend(own(&alice, &[device.last_resort()]).await);
    for spends in [true, false, true] {
        let mut handed = reserve().await;
        minutes(2);
        if spends {
            handed.spend().await;
        }
    }
    // Held now.
    packages.extend(own(&alice, &[device.key_package()]).await);
    reserve().await;
    // Never handed out.
    packages.extend(own(&alice, &[device.key_package()]).await);
    server.sweep().await;
    is_whole(&server).await;
    for (number, verdict) in verdicts(&alice, &packages).await.into_iter().enumerate() {
        assert!(matches!(verdict, Verdict::Fine), "{db:?}, package {number}: {verdict:?}");
    }
    // The trail says no more than it is asked for: an unspent group stays unknown.
    let (events, _) = trail(&alice).await;
    let reserves = events.iter().filter(|event| event.action == Action::Reserve);
    assert!(reserves.filter_map(|event| event.group_id.as_ref()).all(|id| id.0 != b"friends"));
    assert!(events.iter().all(|event| (event.leaves == 0) == (event.action == Action::Upload)));
}

/// A trail that leaves a hand-out out, or tells another story of it, is noticed: the check above can fail.
#[rstest]
#[tokio::test]
async fn a_trail_that_was_changed_is_noticed(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start(db).await;
    let alice = server.anyone().registered("alice", "laptop").await;
    let bob = server.anyone().registered("bob", "phone").await;
    let packages = own(&alice, &[Device::new("alice", "laptop").key_package()]).await;
    reserve(&bob, BOB, "alice", "friends").await.spend().await;
    is_whole(&server).await;
    assert!(matches!(verdicts(&alice, &packages).await[..], [Verdict::Fine]));
    server.database().run("UPDATE audit_events SET at = at + 1 WHERE action = 'spend'");
    let verdict = verdicts(&alice, &packages).await.remove(0);
    assert!(matches!(verdict, Verdict::CannotTell(_) | Verdict::Report(_)), "{verdict:?}");
    server.database().run("DELETE FROM audit_events WHERE action = 'spend'");
    let verdict = verdicts(&alice, &packages).await.remove(0);
    let is_left_out = matches!(verdict, Verdict::Report(Problem::LeftOut(_)) | Verdict::CannotTell(_));
    assert!(is_left_out, "{verdict:?}");
}
