//! The requests of the identity check: a join asks once, however large the group is, and where nothing is
//! unknown nothing is asked.

use futures_util::{StreamExt as _, stream};
use keypool_client::Event;
use rstest::rstest;
use serde_json::{Value, json};

use super::helpers::{behind_a_proxy, group_of, invite, start};
use crate::support::{Anywhere, Database, Device, Http, Owner, Party, Proxy, TestServer, encode};

/// The requests since this was asked last, without groups and parameters.
fn requests(proxy: &Proxy) -> Vec<String> {
    let request = |head: String| {
        let (method, path) = head.split_once(' ').unwrap();
        let path = path.split(['?', ' ']).next().unwrap();
        match path.strip_prefix("/groups/").and_then(|path| path.split_once('/')) {
            Some((_, what)) => format!("{method} {what}"),
            None => format!("{method} {path}"),
        }
    };
    proxy.seen().into_iter().map(request).collect()
}

const LOOK: &str = "GET /messages";
const ACKNOWLEDGE: &str = "POST /messages/ack";
const COMMIT: &str = "POST commits";
const LOOK_UP: &str = "POST /devices/lookup";

/// Registers a user, and answers a KeyPackage of theirs, which the server has seen.
async fn key_package(server: &TestServer, user: &str) -> Value {
    let package = Device::new(user, "laptop").key_package();
    server.anyone().registered(user, "laptop").await.uploaded(&[&package]).await;
    json!({ "keypackage": encode(&package) })
}

/// Makes a group of so many registered users, by OpenMLS.
async fn large_group(server: &TestServer, members: usize) -> (Http, Party) {
    let http = server.anyone().registered("founder", "laptop").await;
    let device = Device::new("founder", "laptop");
    http.uploaded(&[device.key_package()]).await;
    let names = (1..members).map(|n| format!("member-{n}"));
    let packages = stream::iter(names).map(async |name| key_package(server, &name).await).buffer_unordered(16);
    let packages: Vec<Value> = packages.collect().await;
    let mut party = device.founds("large");
    party.adds(&packages.iter().collect::<Vec<_>>());
    party.merges();
    (http, party)
}

#[rstest]
#[tokio::test]
async fn joining_a_group_of_five_hundred_costs_one_look_up(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = start(db).await;
    let (founder, mut party) = large_group(&server, 500).await;
    let (proxy, bob) = behind_a_proxy(&server, "bob").await;
    assert_eq!(bob.hears().await, []);
    let reservation = founder.reserved("bob").await;
    let (commit, welcome) = party.adds(&[&reservation]);
    party.merges();
    let body = json!({
        "commit": encode(&commit), "welcome": encode(&welcome), "recipients": [],
        "reservations": [reservation["reservation_id"]],
    });
    founder.post(&format!("/groups/{}/commits", party.path()), &body).await.ok();
    requests(&proxy);
    let heard = bob.hears().await;
    let [Event::Joined { by }] = heard.as_slice() else { panic!("{heard:?}") };
    assert_eq!(by.user.as_str(), "founder");
    assert_eq!(bob.membership().members(b"large").unwrap().len(), 501);
    assert_eq!(requests(&proxy), [LOOK, LOOK_UP, ACKNOWLEDGE, LOOK]);
    // Each of them is known from now on.
    let text = json!({
        "message": encode(&party.says("welcome")), "recipients": [{ "user": "bob", "device": "laptop" }],
    });
    founder.post(&format!("/groups/{}/messages", party.path()), &text).await.ok();
    assert_eq!(bob.texts().await, [("founder/laptop".to_owned(), "welcome".to_owned())]);
    assert_eq!(requests(&proxy), [LOOK, ACKNOWLEDGE, LOOK]);
}

#[rstest]
#[tokio::test]
async fn where_nothing_is_unknown_nothing_is_asked(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = start(db).await;
    let (group, owners) = group_of(&server, &["alice", "carol"]).await;
    let alice = &owners[0];
    let (proxy, bob) = behind_a_proxy(&server, "bob").await;
    invite(alice, &group, &["bob"]).await;
    bob.hears().await;
    requests(&proxy);

    assert_eq!(bob.hears().await, []);
    assert_eq!(requests(&proxy), [LOOK], "nothing came");
    bob.refresh().await.unwrap();
    bob.refresh().await.unwrap();
    // What was handed out is compared with the log, once that has it.
    let asked: Vec<_> = requests(&proxy).into_iter().filter(|request| request != "POST /log/proofs").collect();
    assert_eq!(asked[1..], ["GET /keypackages/status"], "nothing is to be done");
    alice.membership().send(&group.group_id, "hello").await.unwrap();
    alice.membership().update_keys(&group.group_id).await.unwrap();
    alice.membership().leave(&group.group_id).await.unwrap();
    bob.hears().await;
    assert_eq!(requests(&proxy), [LOOK, ACKNOWLEDGE, LOOK, COMMIT], "a text, new keys, and a departure");
    // An invitation by people whose keys were accepted before, into a group of theirs.
    let second = owners[1].membership().create_named_group("second").unwrap();
    invite(&owners[1], &second, &["bob"]).await;
    bob.hears().await;
    assert_eq!(requests(&proxy), [LOOK, ACKNOWLEDGE, LOOK]);
    bob.membership().send(&second.group_id, "hi").await.unwrap();
    assert_eq!(requests(&proxy), [LOOK, "POST messages"]);
}

#[rstest]
#[tokio::test]
async fn a_join_asks_once_and_what_is_known_is_not_asked_again(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = start(db).await;
    let (group, owners) = group_of(&server, &["alice", "carol", "dave", "erin"]).await;
    let alice = &owners[0];
    let (proxy, bob) = behind_a_proxy(&server, "bob").await;
    let asked = || proxy.seen().iter().filter(|head| head.starts_with("POST /devices/lookup")).count();
    invite(alice, &group, &["bob"]).await;
    bob.hears().await;
    assert_eq!(asked(), 1, "one question for the whole group");
    alice.membership().send(&group.group_id, "hello").await.unwrap();
    alice.membership().update_keys(&group.group_id).await.unwrap();
    let second = alice.membership().create_named_group("second").unwrap();
    invite(alice, &second, &["bob", "carol"]).await;
    bob.hears().await;
    bob.refresh().await.unwrap();
    assert_eq!(asked(), 0, "nothing is unknown");
    // The directory is asked about every added device: its key may have changed.
    Owner::of(&server, "frank").await;
    Owner::of(&server, "grace").await;
    invite(alice, &group, &["frank"]).await;
    invite(alice, &group, &["grace"]).await;
    bob.hears().await;
    assert_eq!(asked(), 2);
}
