//! Limits against draining, and how operators and owners see a user who drains.

mod addresses;

use jiff::SignedDuration;
use keypool_openapi::{MAX_TARGETS, ProblemType};
use keypool_server::config::Limits;
use rstest::rstest;
use serde_json::{Value, json};

use crate::support::{Answer, Anywhere, Database, Device, Http, TestServer, hot_client};

/// Alice, whose last resort never runs out, and Bob.
async fn with_a_last_resort(server: &TestServer) -> (Http, Http) {
    let alice = server.anyone().registered("alice", "laptop").await;
    alice.uploaded(&[Device::new("alice", "laptop").last_resort()]).await;
    (alice, server.anyone().registered("bob", "phone").await)
}

async fn with_packages(server: &TestServer, packages: usize) -> (Http, Http) {
    let alice = server.anyone().registered("alice", "laptop").await;
    alice.uploaded(&Device::new("alice", "laptop").key_packages(packages)).await;
    (alice, server.anyone().registered("bob", "phone").await)
}

#[track_caller]
fn assert_wait(answer: &Answer, seconds: u64) {
    answer.is_problem(429, ProblemType::TooManyRequests);
    assert_eq!(answer.header("retry-after"), Some(seconds.to_string().as_str()), "{}", answer.text);
    assert!(answer.json["detail"].as_str().unwrap().contains(&format!("in {seconds} s")), "{}", answer.text);
}

#[rstest]
#[tokio::test]
async fn one_user_asks_of_another_thirty_times_and_then_every_two_seconds(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = TestServer::start(db).await;
    let (_, bob) = with_a_last_resort(&server).await;
    let tablet = bob.registered("bob", "tablet").await;
    for n in 0..30 {
        let device = if n % 2 == 0 { &bob } else { &tablet };
        device.reserved("alice").await;
    }
    assert_wait(&bob.reserve("alice").await, 2);
    assert_wait(&tablet.reserve("alice").await, 2);
    // Others are asked, and others ask, as before.
    bob.reserve("bob").await.is_problem(404, ProblemType::PoolExhausted);
    server.anyone().registered("carol", "phone").await.reserved("alice").await;
    server.advance(SignedDuration::from_secs(2));
    bob.reserved("alice").await;
    assert_wait(&bob.reserve("alice").await, 2);
    server.advance(SignedDuration::from_secs(60));
    for _ in 0..30 {
        bob.reserved("alice").await;
    }
    assert_wait(&bob.reserve("alice").await, 2);
}

#[rstest]
#[tokio::test]
async fn a_user_asks_for_so_much_in_all(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start_with(db, |config| {
        config.requester_burst = 110;
        config.requester_per_minute = 60;
    })
    .await;
    let bob = server.anyone().registered("bob", "phone").await;
    let tablet = bob.registered("bob", "tablet").await;
    let strangers: Vec<_> = (0..MAX_TARGETS).map(|n| format!("nobody-{n}")).collect();
    // The registration of the tablet was the first; a hundred targets count a hundred.
    let many = bob.post("/keypackages/reserve", &json!({"targets": strangers})).await;
    many.is_problem(404, ProblemType::UnknownUser);
    for _ in 0..9 {
        tablet.status().await;
    }
    for device in [&bob, &tablet] {
        assert_wait(&device.get("/keypackages/status").await, 1);
        assert_wait(&device.post("/keypackages/upload", &json!({"keypackages": []})).await, 1);
    }
    server.anyone().registered("carol", "phone").await.status().await;
    server.advance(SignedDuration::from_secs(1));
    bob.status().await;
    assert_wait(&bob.get("/keypackages/status").await, 1);
}

#[rstest]
#[tokio::test]
async fn a_device_holds_so_many_at_a_time(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start_with(db, |config| config.max_live_reservations = 3).await;
    let (alice, bob) = with_packages(&server, 20).await;
    let other = server.beside(|config| config.max_live_reservations = 3).await;
    let bob_there = bob.at(&other.base);
    let spent = bob.reserved("alice").await;
    let released = bob_there.reserved("alice").await;
    server.advance(SignedDuration::from_secs(10));
    bob.reserved("alice").await;
    for bob in [&bob, &bob_there] {
        assert_wait(&bob.reserve("alice").await, 50);
    }
    assert_eq!(alice.status().await["reserved"], 3, "a wish that was refused was fulfilled");
    bob.registered("bob", "tablet").await.reserved("alice").await;

    bob.spend(&spent, "friends").await.ok();
    bob_there.reserved("alice").await;
    assert_wait(&bob.reserve("alice").await, 50);
    bob.release(&released).await.ok();
    bob.reserved("alice").await;
    assert_wait(&bob_there.reserve("alice").await, 60);
    // The first of the three began ten seconds ago, and now ends.
    server.advance(SignedDuration::from_secs(60));
    for bob in [&bob, &bob_there, &bob] {
        bob.reserved("alice").await;
    }
    assert_wait(&bob.reserve("alice").await, 60);
}

#[rstest]
#[tokio::test]
async fn what_alone_is_too_much_is_refused_as_well(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start_with(db, |config| config.max_live_reservations = 1).await;
    let (alice, bob) = with_packages(&server, 1).await;
    alice.registered("alice", "tablet").await.uploaded(&[Device::new("alice", "tablet").key_package()]).await;
    bob.reserve("alice").await.is_problem(429, ProblemType::TooManyRequests);
    assert_eq!(alice.status().await["reserved"], 0);
    let one = bob.post("/keypackages/reserve", &json!({"target_user": "alice", "device": "tablet"})).await;
    assert_eq!(one.ok()["reservations"].as_array().unwrap().len(), 1);
}

/// Two hundred people with one device each.
async fn crowd(server: &TestServer) -> Vec<String> {
    let anyone = Http::over(hot_client(), &server.base);
    let mut names = Vec::new();
    for n in 0..200 {
        let name = format!("friend-{n:03}");
        let device = anyone.registered(&name, "phone").await;
        device.uploaded(&Device::new(&name, "phone").key_packages(2)).await;
        names.push(name);
    }
    names
}

async fn spend_all(bob: &Http, answer: &Value) -> usize {
    let reservations = answer["reservations"].as_array().unwrap();
    for reservation in reservations {
        bob.spend(reservation, "everybody").await.ok();
    }
    reservations.len()
}

#[rstest]
#[tokio::test]
async fn a_group_of_two_hundred_is_made_as_it_comes(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = TestServer::start(db).await;
    let names = crowd(&server).await;
    let bob = Http::over(hot_client(), &server.base).registered("bob", "phone").await;
    // The clock stands still: all of it happens at once.
    let mut added = 0;
    for hundred in names.chunks(MAX_TARGETS) {
        let answer = bob.post("/keypackages/reserve", &json!({"targets": hundred})).await.ok();
        assert_eq!(answer["missing"], json!([]));
        added += spend_all(&bob, &answer).await;
    }
    for name in &names {
        let answer = bob.reserve(name).await.ok();
        added += spend_all(&bob, &answer).await;
    }
    assert_eq!(added, 400);
}

/// However many devices and servers a user has, most of a pool is there for others.
#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_user_holds_a_part_of_a_pool(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start(db).await;
    let other = server.beside(|_| ()).await;
    let (alice, bob) = with_packages(&server, 32).await;
    let tablet = bob.registered("bob", "tablet").await;
    let callers = [bob.clone(), tablet.clone(), bob.at(&other.base), tablet.at(&other.base)];
    let reserve = |caller: Http| tokio::spawn(async move { caller.reserve("alice").await });
    let tasks: Vec<_> = callers.iter().cycle().take(24).cloned().map(reserve).collect();
    let mut held = Vec::new();
    for task in tasks {
        let answer = task.await.unwrap();
        if answer.status == 200 {
            held.push(answer.json["reservations"][0].clone());
        } else {
            answer.is_problem(429, ProblemType::TooManyRequests);
            assert_eq!(answer.json["missing"][0]["reason"], "too-many-requests", "{}", answer.text);
        }
    }
    assert_eq!((held.len(), &alice.status().await["reserved"]), (8, &json!(8)));
    // Others are served, and so is the user when a reservation ends, in whichever way.
    server.anyone().registered("carol", "phone").await.reserved("alice").await;
    let holder = if bob.release(&held[0]).await.status == 200 { &bob } else { &tablet };
    holder.release(&held[0]).await.ok();
    bob.reserved("alice").await;
    bob.reserve("alice").await.is_problem(429, ProblemType::TooManyRequests);
    server.advance(SignedDuration::from_secs(60));
    bob.reserved("alice").await;
}

#[rstest]
#[tokio::test]
async fn one_who_holds_too_much_of_one_device_is_served_by_the_others(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = TestServer::start_with(db, |config| config.max_live_per_pair = 2).await;
    let (alice, bob) = with_packages(&server, 9).await;
    let phone = alice.registered("alice", "phone").await;
    phone.uploaded(&Device::new("alice", "phone").key_packages(9)).await;
    for _ in 0..2 {
        bob.post("/keypackages/reserve", &json!({"target_user": "alice", "device": "laptop"})).await.ok();
    }
    let answer = bob.reserve("alice").await.ok();
    assert_eq!(answer["reservations"][0]["device"], "phone");
    let missing = json!([{"user": "alice", "device": "laptop", "reason": "too-many-requests", "ciphersuites": []}]);
    assert_eq!((answer["reservations"].as_array().unwrap().len(), &answer["missing"]), (1, &missing));
}

#[rstest]
#[tokio::test]
async fn the_owner_sees_who_drains(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start_with(db, |config| {
        config.pair_burst = 100;
        config.max_live_per_pair = 100;
    })
    .await;
    let (alice, bob) = with_packages(&server, 60).await;
    let carol = server.anyone().registered("carol", "phone").await;
    let tablet = carol.registered("carol", "tablet").await;
    for _ in 0..15 {
        bob.reserved("alice").await;
        carol.reserved("alice").await;
    }
    assert_eq!(alice.status().await["draining"], json!([]));
    bob.spend(&bob.reserved("alice").await, "friends").await.ok();
    assert_eq!(alice.status().await["draining"], json!([{"user": "bob", "handed_out": 16}]));
    for _ in 0..5 {
        tablet.reserved("alice").await;
    }
    let both = json!([{"user": "carol", "handed_out": 20}, {"user": "bob", "handed_out": 16}]);
    assert_eq!(alice.status().await["draining"], both);
    // An hour after the last of it was held.
    server.advance(SignedDuration::from_secs(60 + 3_599));
    server.sweep().await;
    assert_eq!(alice.status().await["draining"], both);
    server.advance(SignedDuration::from_secs(1));
    assert_eq!(alice.status().await["draining"], json!([]));
}

#[rstest]
#[tokio::test]
async fn off_is_off(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start_with(db, |config| {
        config.limits = Limits::Off;
        config.requester_burst = 100;
        config.max_live_reservations = 1;
    })
    .await;
    let (_, bob) = with_packages(&server, 50).await;
    for _ in 0..50 {
        bob.reserved("alice").await;
    }
    for _ in 0..100 {
        bob.status().await;
    }
}
