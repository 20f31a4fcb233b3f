//! One client that many tasks call at the same time, and calls that are dropped before they end.

use std::{
    collections::BTreeMap,
    future::poll_fn,
    io::{BufRead as _, BufReader},
    pin::pin,
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    task::Poll,
};

use keypool_client::{Event, MlsClient, Result};
use keypool_openapi::{DeviceOf, PoolStatus, Reservation};
use rstest::rstest;
use tokio::task::JoinHandle;

use super::{
    command::Shell,
    helpers::{epoch, group_of, invite, invited, members, start, user},
};
use crate::support::{Database, Owner, example};

/// How often all calls run at once.
const ROUNDS: usize = 100;

/// How many texts Alice sends at once.
const TEXTS: usize = 4;

const RECEIVE: &str = "receive";

/// The calls that run at the same time, each with its name.
type Calls = Vec<(&'static str, JoinHandle<Result<()>>)>;

/// The items that Alice received, by the number of the message: two calls may return the same.
type Inbox = Arc<Mutex<BTreeMap<u64, Event>>>;

fn texts(inbox: &BTreeMap<u64, Event>) -> Vec<String> {
    let text = |event: &Event| if let Event::Text { text, .. } = event { Some(text.clone()) } else { None };
    inbox.values().filter_map(text).collect()
}

/// Calls about a group and its messages.
fn of_the_group(alice: &MlsClient, (group, round): (&[u8], usize), inbox: &Inbox) -> Calls {
    let mut calls = Calls::new();
    let mut at_once = |name, call| calls.push((name, call));
    for number in 0..TEXTS {
        let (alice, group) = (alice.clone(), group.to_vec());
        let text = format!("{round} {number}");
        at_once("send", tokio::spawn(async move { alice.membership().send(&group, &text).await.map(drop) }));
    }
    for name in ["carol", "dave"] {
        let (alice, group, user) = (alice.clone(), group.to_vec(), user(name));
        let change = async move {
            if round.is_multiple_of(2) {
                let invited = alice.membership().invite(&group, &[user]).await?;
                assert_eq!((invited.added.len(), invited.undelivered.len()), (1, 0), "{invited:?}");
                return Ok(());
            }
            alice.membership().remove(&group, &user).await.map(drop)
        };
        at_once("invite or remove", tokio::spawn(change));
    }
    for wait in [0, 30] {
        let (alice, inbox) = (alice.clone(), Arc::clone(inbox));
        let receive = async move {
            let incoming = alice.membership().receive(wait).await?;
            alice.membership().done(&incoming)?;
            inbox.lock().unwrap().extend(incoming.into_iter().map(|one| (one.id, one.event)));
            Ok(())
        };
        at_once(RECEIVE, tokio::spawn(receive));
    }
    let (client, id) = (alice.clone(), group.to_vec());
    at_once("update", tokio::spawn(async move { client.membership().update_keys(&id).await.map(drop) }));
    let (client, id) = (alice.clone(), group.to_vec());
    let look = async move {
        let groups = client.membership().groups()?;
        assert!(groups.iter().any(|group| group.group_id == id));
        client.membership().members(&id).map(drop)
    };
    at_once("groups and members", tokio::spawn(look));
    calls
}

/// Calls about other groups, and about the pool.
fn of_the_rest(alice: &MlsClient, round: usize, welcome: Vec<u8>) -> Calls {
    let mut calls = Calls::new();
    let mut at_once = |name, call| calls.push((name, call));
    for name in ["other", "renewed"] {
        let alice = alice.clone();
        let other = async move {
            let groups = alice.membership();
            let mut group = groups.create_named_group(name)?;
            if name == "renewed" {
                let renewed = groups.renew(&group.group_id, &[]).await?.group;
                groups.leave(&std::mem::replace(&mut group, renewed).group_id).await?;
            }
            groups.leave(&group.group_id).await.map(drop)
        };
        at_once("create, renew and leave", tokio::spawn(other));
    }
    let client = alice.clone();
    let prepare = async move {
        let mut group = client.create_group(format!("prepared {round}").as_bytes())?;
        let invitation = invited(&client, &mut group, &user("bob")).await?;
        assert_eq!(invitation.added.len(), 1);
        Ok(())
    };
    at_once("prepare an invitation", tokio::spawn(prepare));
    let client = alice.clone();
    at_once("join", tokio::spawn(async move { client.join(&welcome).await.map(drop) }));
    for spends in [true, false] {
        let alice = alice.clone();
        let reserve = async move {
            let reservations = alice.reserve(&user("bob"), None, None, None).await?.reservations;
            let Reservation { reservation_id, .. } = reservations[0];
            if spends {
                return alice.spend(reservation_id, b"elsewhere").await.map(drop);
            }
            alice.release(reservation_id).await.map(drop)
        };
        at_once("reserve", tokio::spawn(reserve));
    }
    for _ in 0..2 {
        let alice = alice.clone();
        at_once("refresh", tokio::spawn(async move { alice.refresh_key_packages(&|_| ()).await.map(drop) }));
    }
    let client = alice.clone();
    let read = async move {
        client.status().await?;
        client.audit(None, 10).await?;
        client.inventory().await.map(drop)
    };
    at_once("status, audit and inventory", tokio::spawn(read));
    let client = alice.clone();
    let change = async move {
        if round.is_multiple_of(10) {
            return client.rotate(&|_| ()).await.map(drop);
        }
        let free = client.inventory().await?.into_iter().find(|one| one.state == keypool_openapi::State::Available);
        client.revoke(Some(free.into_iter().map(|one| one.keypackage_ref).collect())).await.map(drop)
    };
    at_once("rotate or revoke", tokio::spawn(change));
    calls
}

async fn all_succeed(calls: Calls, round: usize) {
    for (name, call) in calls {
        call.await.unwrap().unwrap_or_else(|error| panic!("{name} in round {round}: {}", error.with_causes()));
    }
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn tasks_call_one_client_at_the_same_time(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = start(db).await;
    let (group, owners) = group_of(&server, &["alice", "bob"]).await;
    let [alice, bob] = owners.as_slice() else { unreachable!() };
    let (carol, dave) = (Owner::of(&server, "carol").await, Owner::of(&server, "dave").await);
    for round in 0..ROUNDS {
        let mut carols = carol.create_group(format!("carols {round}").as_bytes()).unwrap();
        let welcome = invited(&carol, &mut carols, &user("alice")).await.unwrap().welcome;
        let inbox = Inbox::default();
        let mut calls = of_the_group(alice, (&group.group_id, round), &inbox);
        calls.extend(of_the_rest(alice, round, welcome));
        assert!(calls.len() >= 20, "{}", calls.len());
        bob.membership().send(&group.group_id, &format!("bob {round}")).await.unwrap();
        let (receives, others): (Calls, Calls) = calls.into_iter().partition(|(name, _)| *name == RECEIVE);
        all_succeed(others, round).await;
        // One of them may wait for a message.
        bob.membership().send(&group.group_id, &format!("end of {round}")).await.unwrap();
        all_succeed(receives, round).await;

        let late = alice.membership().receive(0).await.unwrap();
        alice.membership().done(&late).unwrap();
        inbox.lock().unwrap().extend(late.into_iter().map(|one| (one.id, one.event)));
        assert_eq!(texts(&inbox.lock().unwrap()), [format!("bob {round}"), format!("end of {round}")]);
        let mut heard: Vec<_> = bob.texts().await.into_iter().map(|(_, text)| text).collect();
        heard.sort();
        assert_eq!(heard, (0..TEXTS).map(|number| format!("{round} {number}")).collect::<Vec<_>>());
        for other in [&carol, &dave] {
            other.hears().await;
            other.refresh().await.unwrap();
        }
        bob.refresh().await.unwrap();
        assert_eq!(epoch(alice, &group), epoch(bob, &group), "round {round}");
        assert_eq!(members(alice, &group), members(bob, &group), "round {round}");
        assert_eq!(members(bob, &group).len(), if round.is_multiple_of(2) { 4 } else { 2 });
    }
    let report = alice.refresh().await.unwrap();
    assert!(report.pool.fresh >= 8 && report.pool.last_resort.present, "{report:?}");
    assert!(alice.refresh().await.unwrap().changed_nothing());
}

/// Polls a call so many times and drops it. Returns its answer if it ended before.
async fn dropped_after<T>(polls: usize, call: impl Future<Output = T>) -> Option<T> {
    let (mut call, mut left) = (pin!(call), polls);
    poll_fn(|context| match call.as_mut().poll(context) {
        Poll::Ready(answer) => Poll::Ready(Some(answer)),
        Poll::Pending if left == 0 => Poll::Ready(None),
        Poll::Pending => {
            left -= 1;
            Poll::Pending
        }
    })
    .await
}

#[rstest]
#[tokio::test]
async fn a_call_that_is_dropped_anywhere_loses_nothing(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = start(db).await;
    let (group, owners) = group_of(&server, &["alice", "bob"]).await;
    let [alice, bob] = owners.as_slice() else { unreachable!() };
    let carol = Owner::of(&server, "carol").await;
    let (id, users) = (&group.group_id, [user("carol")]);
    let mut polls = 0;
    let mut ended = [false; 4];
    while !ended.iter().all(|one| *one) {
        ended[0] = dropped_after(polls, alice.membership().send(id, "dropped")).await.is_some();
        ended[1] = dropped_after(polls, alice.membership().invite(id, &users)).await.is_some();
        let is_in = || members(alice, &group).contains("carol/laptop");
        // A Commit that the server has accepted is in force, whether or not the call saw that.
        alice.membership().settle().await.unwrap();
        if !is_in() {
            assert_eq!(invite(alice, &group, &["carol"]).await, ["carol/laptop".to_owned()].into());
        }
        carol.hears().await;
        assert_eq!(epoch(&carol, &group), epoch(alice, &group), "after {polls} polls");
        ended[2] = dropped_after(polls, alice.membership().receive(0)).await.is_some();
        ended[3] = dropped_after(polls, alice.rotate(&|_| ())).await.is_some();
        alice.refresh().await.unwrap();
        alice.membership().remove(id, &user("carol")).await.unwrap();
        carol.hears().await;
        carol.refresh().await.unwrap();

        alice.membership().send(id, &format!("after {polls} polls")).await.unwrap();
        let heard = bob.texts().await;
        assert!(heard.iter().any(|(_, text)| *text == format!("after {polls} polls")), "{heard:?}");
        assert_eq!(epoch(bob, &group), epoch(alice, &group), "after {polls} polls");
        let status = alice.status().await.unwrap();
        assert!(status.fresh >= 8 && status.last_resort.present, "after {polls} polls: {status:?}");
        polls += 1;
    }
    let devices: Vec<DeviceOf> = alice.membership().members(id).unwrap();
    assert_eq!(devices.len(), 2);
}

/// The example of the guide, as an application would write it.
#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn a_web_server_and_threads_use_one_client(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = start(db).await;
    let (alice, bob) = (Shell::of(&server.base, "alice", &[]), Shell::of(&server.base, "bob", &[]));
    alice.text(&["group", "create", "friends"]);
    alice.text(&["group", "invite", "friends", "bob"]);
    bob.text(&["receive"]);
    let mut shared = Command::new(example("shared"));
    let mut shared = shared.arg(alice.data()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(shared.stdout.take().unwrap()).lines().map(Result::unwrap);
    let seen: Vec<_> = lines.by_ref().take(4).collect();
    assert!(seen.iter().all(|line| line.ends_with("sees 1 groups")), "{seen:?}");
    let base = lines.next().unwrap().strip_prefix("listening on ").unwrap().to_owned();

    let http = reqwest::Client::new();
    let calls = (0..20).map(|number| {
        let (http, base) = (http.clone(), base.clone());
        tokio::spawn(async move {
            let status = http.get(format!("{base}/")).send().await.unwrap().json::<PoolStatus>().await.unwrap();
            assert_eq!(status.fresh, 32);
            let sent = http.post(format!("{base}/friends")).body(format!("text {number:02}")).send().await.unwrap();
            assert!(sent.status().is_success(), "{}", sent.text().await.unwrap());
        })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.unwrap();
    }
    shared.kill().unwrap();
    shared.wait().unwrap();
    let received = bob.json(&["receive"]);
    let mut texts: Vec<_> = received.as_array().unwrap().iter().map(|one| one["text"].as_str().unwrap()).collect();
    texts.sort_unstable();
    assert_eq!(texts, (0..20).map(|number| format!("text {number:02}")).collect::<Vec<_>>());
}
