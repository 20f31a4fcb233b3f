//! Servers whose clocks are apart.

use jiff::SignedDuration;
use keypool_openapi::ProblemType;
use rstest::rstest;
use serde_json::json;

use crate::support::{Answer, Database, Device, Http, OtherClock, ServerProcess, TestServer};

/// Two servers on machines of their own, Alice's pool of one, and Bob, who holds it.
struct Scene {
    right: TestServer,
    other: TestServer,
    alice: Http,
    bob: Http,
    carol: Http,
    held: serde_json::Value,
}

impl Scene {
    async fn new() -> Self {
        let right = TestServer::start(Database::Postgres).await;
        let other = right.on_another_machine(|_| {}).await;
        let anyone = right.anyone();
        let alice = anyone.registered("alice", "laptop").await;
        let (bob, carol) = (anyone.registered("bob", "phone").await, anyone.registered("carol", "phone").await);
        alice.uploaded(&Device::new("alice", "laptop").key_packages(1)).await;
        let held = bob.reserved("alice").await;
        Self { right, other, alice, bob, carol, held }
    }

    /// The other server's answer to Carol, who asks for the KeyPackage that Bob holds.
    async fn reserves(&self) -> Answer {
        self.carol.at(&self.other.base).reserve("alice").await
    }
}

fn is_refused(answer: &Answer) {
    answer.is_problem(503, ProblemType::Unavailable);
    assert!(answer.text.contains("clock is off"), "{}", answer.text);
    assert!(answer.headers.contains_key("retry-after"));
}

#[rstest]
#[tokio::test]
async fn a_server_whose_clock_is_off_is_not_ready_and_reserves_and_sweeps_nothing(
    // Longer than a reservation, longer than the lifetime of all KeyPackages, and behind.
    #[values(90, 15 * 86_400, -90)] seconds: i64,
) {
    let scene = Scene::new().await;
    let Scene { right, other, alice, bob, held, .. } = &scene;
    other.set_ahead(SignedDuration::from_secs(seconds));
    is_refused(&other.anyone().get("/readyz").await);
    is_refused(&scene.reserves().await);
    let said = other.try_sweep().await.unwrap_err();
    assert!(said.contains("clock is off"), "{said}");
    let metrics = other.anyone().get("/metrics").await.text;
    assert!(metrics.contains(&format!("\nkeypool_clock_ahead_seconds {seconds}\n")), "{metrics}");

    // Nothing has become of Bob's reservation, or of the pool.
    let trail = alice.get("/keypackages/audit").await.ok()["events"].clone();
    let actions: Vec<_> = trail.as_array().unwrap().iter().map(|event| event["action"].as_str().unwrap()).collect();
    assert_eq!(actions, ["reserve", "upload"]);
    assert_eq!(right.anyone().get("/readyz").await.status, 200);
    // Its holder may spend it at any server: that changes nothing for others.
    bob.at(&other.base).spend(held, "friends").await.ok();

    other.set_ahead(SignedDuration::ZERO);
    assert_eq!(other.anyone().get("/readyz").await.status, 200);
    other.sweep().await;
    scene.reserves().await.is_problem(404, ProblemType::PoolExhausted);
}

#[rstest]
#[tokio::test]
async fn a_clock_that_is_off_is_seen_by_each_sweep_and_at_each_connection(#[values(false, true)] is_new: bool) {
    let scene = Scene::new().await;
    scene.other.set_ahead(SignedDuration::from_secs(90));
    if is_new {
        scene.other.database().end_others();
        scene.alice.at(&scene.other.base).status().await;
    } else {
        scene.other.try_sweep().await.unwrap_err();
    }
    is_refused(&scene.reserves().await);
    scene.other.set_ahead(SignedDuration::ZERO);
    if is_new {
        scene.other.database().end_others();
        scene.alice.at(&scene.other.base).status().await;
    } else {
        scene.other.sweep().await;
    }
    scene.reserves().await.is_problem(404, ProblemType::PoolExhausted);
}

#[tokio::test]
async fn a_clock_may_be_as_far_off_as_the_operator_says() {
    let scene = Scene::new().await;
    let ready = async |millis| {
        scene.other.set_ahead(SignedDuration::from_millis(millis));
        scene.other.anyone().get("/readyz").await.status
    };
    for (millis, status) in [(2_000, 200), (-2_000, 200), (2_001, 503), (-2_001, 503)] {
        assert_eq!(ready(millis).await, status, "{millis} ms");
    }
}

/// The server that notices a restore fences the database by the time of PostgreSQL: Commits that come after a time in the future would look as if they
/// were from before the fence.
#[tokio::test]
async fn a_server_whose_clock_is_off_fences_a_database_by_the_databases_time() {
    let scene = Scene::new().await;
    scene.other.set_ahead(SignedDuration::from_hours(24 * 15));
    scene.other.database().run("DELETE FROM lineage");
    scene.other.try_sweep().await.unwrap_err();
    assert_eq!(scene.alice.status().await["fenced_at"], scene.right.second());
}

/// With SQLite, the server and its database have the clock of one machine.
#[tokio::test]
async fn a_database_without_a_clock_of_its_own_has_the_same_time() {
    let server = TestServer::start(Database::Sqlite).await;
    let other = server.on_another_machine(|_| {}).await;
    other.set_ahead(SignedDuration::from_secs(90));
    assert_eq!(other.anyone().get("/readyz").await.status, 200);
    other.sweep().await;
}

/// The program on a machine whose clock is ahead: by more than a reservation lasts, and by more than any KeyPackage does.
#[rstest]
#[tokio::test]
async fn a_program_whose_clock_is_ahead_hands_out_nothing_that_is_held_and_expires_nothing(
    #[values(90, 100 * 86_400)] ahead: i64,
) {
    let place = tokio::task::spawn_blocking(|| Database::Postgres.fresh()).await.unwrap();
    let server = ServerProcess::start(&place).await;
    let anyone = Http::new(&server.base);
    let (alice, bob) = (anyone.registered("alice", "laptop").await, anyone.registered("bob", "phone").await);
    let carol = anyone.registered("carol", "phone").await;
    alice.uploaded(&Device::new("alice", "laptop").key_packages(5)).await;
    let mut held = Vec::new();
    for _ in 0..5 {
        held.push(bob.reserved("alice").await);
    }

    let clock = OtherClock::build();
    let log = tempfile::NamedTempFile::new().unwrap();
    let stderr = log.reopen().unwrap();
    let mut other = ServerProcess::spawn_with(&place, |command| {
        clock.set(command, ahead);
        command.env("KEYPOOL_SWEEP_INTERVAL", "1s").stderr(stderr);
    });
    other.opened().await;
    is_refused(&Http::new(&other.base).get("/readyz").await);
    let carol = carol.at(&other.base);
    let said = || std::fs::read_to_string(log.path()).unwrap();
    // It sweeps once a second.
    while said().matches("the sweep failed").count() < 2 {
        is_refused(&carol.reserve("alice").await);
    }
    assert!(said().contains("s ahead of the database's"), "{}", said());
    let status = alice.status().await;
    assert_eq!((&status["reserved"], &status["expired"]), (&json!(5), &json!(0)));
    for one in &held {
        bob.at(&other.base).spend(one, "friends").await.ok();
    }
}

/// The program, with PostgreSQL's clock behind its own from the start.
#[tokio::test]
async fn a_server_that_starts_with_a_wrong_clock_says_so_and_is_not_ready() {
    let place = tokio::task::spawn_blocking(|| Database::Postgres.fresh()).await.unwrap();
    let mut database = place.open();
    // Found before PostgreSQL's own.
    let name = place.url.rsplit('/').next().unwrap();
    database.run(&format!("ALTER DATABASE {name} SET search_path = public, pg_catalog"));
    let tells = |seconds: i64| {
        format!(
            "CREATE OR REPLACE FUNCTION public.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS \
             $$ SELECT pg_catalog.clock_timestamp() - interval '{seconds} s' $$"
        )
    };
    database.run(&tells(30));
    let log = tempfile::NamedTempFile::new().unwrap();
    let stderr = log.reopen().unwrap();
    // It allows more, so it starts as any other.
    let lax = ServerProcess::start_with(&place, |command| {
        command.env("KEYPOOL_MAX_CLOCK_OFFSET", "45s");
    })
    .await;
    let mut strict = ServerProcess::spawn_with(&place, |command| {
        command.stderr(stderr);
    });
    let anyone = Http::new(&strict.base);
    strict.opened().await;
    is_refused(&anyone.get("/readyz").await);
    let said = std::fs::read_to_string(log.path()).unwrap();
    assert!(said.contains("this server's clock is off: it is 30.0 s ahead of the database's, and 2 s are"), "{said}");
    let (alice, bob) = (anyone.registered("alice", "laptop").await, anyone.registered("bob", "phone").await);
    alice.uploaded(&Device::new("alice", "laptop").key_packages(1)).await;
    is_refused(&bob.reserve("alice").await);
    bob.at(&lax.base).reserved("alice").await;
    database.run(&tells(0));
    strict.ready().await;
}
