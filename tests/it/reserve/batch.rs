//! Reserves of one batch, and spends of one batch, are done as each would be alone, or left for that.

use std::{collections::BTreeSet, thread};

use jiff::{SignedDuration, Timestamp};
use keypool_openapi::{MissingDevice, MissingReason, Proof, ReservationId, ReserveResponse};
use keypool_server::store::{
    AsOf, DeviceId, HoldLimits, IdempotencyKey, ReservationError, Reserve, ReserveError, ShownToken, Spend, Spent,
    Store, Wanted,
};
use keypool_validation::token::Token;
use rstest::rstest;
use uuid::Uuid;

use crate::{
    plans::read,
    support::{Database, Device, Http, TestServer},
};

struct Scene {
    server: TestServer,
    store: Store,
    bob: ShownToken,
    alice: ShownToken,
}

/// The outcome of one request; `None`: it has to run alone.
type Outcome = Option<Result<ReserveResponse, ReserveError>>;

impl Scene {
    /// Bob, and Alice's devices with so many KeyPackages each.
    async fn new(db: Database, pools: &[(&str, usize)]) -> Self {
        let server = TestServer::start(db).await;
        let anyone = server.anyone();
        let bob = anyone.registered("bob", "phone").await;
        let mut first: Option<Http> = None;
        for (device, packages) in pools {
            let registrar = first.as_ref().unwrap_or(&anyone);
            let http = registrar.registered("alice", device).await;
            if *packages > 0 {
                http.uploaded(&Device::new("alice", device).key_packages(*packages)).await;
            }
            first.get_or_insert(http);
        }
        let store = server.store();
        let shown = |user: &str, http: &Http| ShownToken {
            device: DeviceId(
                server.database().number(&format!("SELECT min(id) AS n FROM devices WHERE user_name = '{user}'")),
            ),
            token_hash: Token::from_header(&format!("Bearer {}", http.token.as_ref().unwrap())).unwrap().hash(),
        };
        let (bob, alice) = (shown("bob", &bob), shown("alice", first.as_ref().unwrap()));
        Self { server, store, bob, alice }
    }

    fn request(&self) -> Reserve {
        // Whole seconds, as a pool asks.
        let now = Timestamp::from_second(self.server.now().as_second()).unwrap();
        Reserve {
            bind: None,
            proof: Proof::None,
            users: BTreeSet::from(["alice".parse().unwrap()]),
            refused: Vec::new(),
            device: None,
            wanted: Wanted { ciphersuites: Vec::new(), last_resort: true, valid_until: now },
            group_id: None,
            by: self.bob,
            nonce: Uuid::new_v4(),
            until: now + SignedDuration::from_mins(1),
            by_user: "bob".parse().unwrap(),
            limits: None,
            repeat: None,
        }
    }

    fn keyed(&self, key: u8) -> Reserve {
        let until = self.server.now() + SignedDuration::from_hours(1);
        Reserve { repeat: Some(IdempotencyKey { key: [key; 32], request: [9; 32], until }), ..self.request() }
    }

    fn as_of(&self) -> AsOf {
        AsOf { now: self.server.now(), retire: false, min_remaining: 1 }
    }

    fn reserve(&self, requests: &[Reserve]) -> Vec<Outcome> {
        let served = self.store.reserve_batch(requests, self.as_of()).unwrap();
        served.into_iter().map(|one| one.map(|one| one.map(|reserved| reserved.answer))).collect()
    }

    /// How many rows there are.
    fn count(&self, of: &str) -> i64 {
        self.server.database().number(&format!("SELECT count(*) AS n FROM {of}"))
    }
}

fn taken(outcome: &Outcome) -> usize {
    outcome.as_ref().map_or(0, |outcome| outcome.as_ref().unwrap().reservations.len())
}

#[tokio::test]
async fn requests_that_meet_take_what_is_there_once() {
    let scene = Scene::new(Database::Postgres, &[("laptop", 1)]).await;
    let outcomes = scene.reserve(&[scene.request(), scene.request(), scene.request()]);
    assert_eq!(outcomes.iter().filter(|one| one.is_some()).count(), 1, "{outcomes:?}");
    assert_eq!(outcomes.iter().map(taken).sum::<usize>(), 1);
    assert_eq!((scene.count("key_packages WHERE held"), scene.count("audit_events WHERE action = 'reserve'")), (1, 1));
    // Nothing is left: that is for each to be told alone.
    assert!(scene.reserve(&[scene.request()])[0].is_none());
}

#[rstest]
#[tokio::test]
async fn of_many_each_has_its_own(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let scene = Scene::new(db, &[("laptop", 90), ("phone", 90)]).await;
    let requests: Vec<_> = (0..20).map(|_| scene.request()).collect();
    let outcomes = scene.reserve(&requests);
    let mut refs = BTreeSet::new();
    for (request, outcome) in requests.iter().zip(&outcomes) {
        // Where two met by chance, one of them is left for alone.
        let Some(Ok(answer)) = outcome else { continue };
        let devices: Vec<_> = answer.reservations.iter().map(|one| one.device.as_str()).collect();
        assert_eq!(devices, ["laptop", "phone"]);
        for one in &answer.reservations {
            assert_eq!((one.reservation_id.nonce, one.expires_at), (request.nonce, request.until));
            assert!(refs.insert(one.keypackage_ref.clone()), "{} is handed out twice", one.keypackage_ref);
        }
    }
    assert!(refs.len() >= 20, "nearly all were left for alone");
    assert_eq!(scene.count("key_packages WHERE held"), i64::try_from(refs.len()).unwrap());
}

#[tokio::test]
async fn a_request_is_served_as_a_whole_or_left_as_it_was() {
    let scene = Scene::new(Database::Postgres, &[("laptop", 5), ("phone", 0)]).await;
    let unknown =
        Reserve { users: BTreeSet::from(["alice".parse().unwrap(), "nobody".parse().unwrap()]), ..scene.request() };
    let one = Reserve { device: Some("laptop".parse().unwrap()), ..scene.request() };
    // The first of those that meet at the same KeyPackage has it.
    let outcomes = scene.reserve(&[one, scene.request(), unknown]);
    assert_eq!(taken(&outcomes[0]), 1);
    assert!(outcomes[1].is_none() && outcomes[2].is_none(), "{outcomes:?}");
    // A request that nobody else is there with.
    let nobody = Reserve { users: BTreeSet::from(["nobody".parse().unwrap()]), ..scene.request() };
    for request in [scene.request(), nobody] {
        assert!(scene.reserve(&[request])[0].is_none());
    }
    assert_eq!(scene.count("key_packages WHERE held"), 1, "something was taken for a request that was not served");
}

#[tokio::test]
async fn who_loses_one_device_to_another_request_has_none_of_them() {
    let scene = Scene::new(Database::Postgres, &[("laptop", 1), ("phone", 50)]).await;
    let outcomes = scene.reserve(&[scene.request(), scene.request()]);
    assert_eq!(outcomes.iter().map(taken).collect::<Vec<_>>(), [2, 0], "{outcomes:?}");
    assert_eq!(scene.count("key_packages WHERE held"), 2);
}

#[rstest]
#[tokio::test]
async fn an_answer_is_kept_for_its_key_alone(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
    #[values(false, true)] is_with_others: bool,
) {
    // Not in the order of their names.
    let scene = Scene::new(db, &[("phone", 50), ("laptop", 50), ("tablet", 50), ("desktop", 50)]).await;
    let refused = ["zoe", "carol"].map(|user| MissingDevice {
        user: user.parse().unwrap(),
        device: None,
        reason: MissingReason::TooManyRequests,
        ciphersuites: vec![1],
    });
    let keyed = |key| Reserve { refused: refused.to_vec(), ..scene.keyed(key) };
    let requests = if is_with_others { vec![keyed(1), keyed(2)] } else { vec![keyed(1)] };
    let mut first = scene.reserve(&requests);
    // Where two met by chance, the first has what both asked for.
    let Some(Ok(first)) = first.swap_remove(0) else { panic!("it was left for alone") };
    assert_eq!((first.reservations.len(), first.missing.len()), (4, 2));
    let again = scene.store.reserve(&keyed(1), scene.as_of()).unwrap().unwrap().answer;
    assert_eq!(serde_json::to_value(&again).unwrap(), serde_json::to_value(&first).unwrap());
    assert_eq!(scene.count("key_packages WHERE held"), 4 * scene.count("idempotency_keys"));
}

#[tokio::test]
async fn a_key_that_comes_elsewhere_at_the_same_moment_spoils_nothing() {
    let scene = Scene::new(Database::Postgres, &[("laptop", 9), ("phone", 9)]).await;
    let of = |request: Reserve, device: &str| Reserve { device: Some(device.parse().unwrap()), ..request };
    let requests = [of(scene.keyed(1), "laptop"), of(scene.request(), "phone")];
    let mut elsewhere = scene.server.database();
    elsewhere.run(&format!(
        "BEGIN; INSERT INTO idempotency_keys VALUES ({}, {}, '', '', 4000000000)",
        scene.bob.device.0,
        elsewhere.bytes(&[1; 32])
    ));
    let outcomes = thread::scope(|scope| {
        let reserving = scope.spawn(|| scene.reserve(&requests));
        while elsewhere.waiting() < 1 {
            assert!(!reserving.is_finished(), "it did not wait for who has the key");
            thread::yield_now();
        }
        elsewhere.run("COMMIT");
        reserving.join().unwrap()
    });
    assert!(outcomes[0].is_none(), "{outcomes:?}");
    assert_eq!(taken(&outcomes[1]), 1, "who has no key was made to wait for alone");
    assert_eq!((scene.count("key_packages WHERE held"), scene.count("idempotency_keys")), (1, 1));
}

#[tokio::test]
async fn a_key_that_is_known_or_comes_twice_is_looked_at_alone() {
    let scene = Scene::new(Database::Postgres, &[("laptop", 50)]).await;
    assert_eq!(taken(&scene.reserve(&[scene.keyed(1)])[0]), 1);
    let outcomes = scene.reserve(&[scene.keyed(1), scene.keyed(2), scene.keyed(2)]);
    assert!(outcomes.iter().all(Option::is_none), "{outcomes:?}");
    assert_eq!((scene.count("key_packages WHERE held"), scene.count("idempotency_keys")), (1, 1));
    // A request that has to run alone does not use up its key.
    let empty = Reserve { device: Some("tablet".parse().unwrap()), ..scene.keyed(3) };
    assert!(scene.reserve(&[empty])[0].is_none());
    assert_eq!(scene.count("idempotency_keys"), 1);
}

/// The idempotency keys of many earlier requests.
const MANY_KEYS: &str = "INSERT INTO idempotency_keys SELECT id, sha256(n::text::bytea), '', '', 4000000000 \
    FROM devices, generate_series(1, 20000) n WHERE user_name = 'bob'";

#[rstest]
#[tokio::test]
async fn a_key_is_looked_for_and_not_all_of_them(#[values(false, true)] is_with_others: bool) {
    let scene = Scene::new(Database::Postgres, &[("laptop", 9), ("phone", 9)]).await;
    let mut database = scene.server.database();
    database.end_others();
    database.run("SELECT pg_stat_reset()");
    let of = |key, device: &str| Reserve { device: Some(device.parse().unwrap()), ..scene.keyed(key) };
    let requests = |first: u8| {
        let both = [of(first, "laptop"), of(first + 1, "phone")];
        both.into_iter().take(if is_with_others { 2 } else { 1 }).collect::<Vec<_>>()
    };
    let reserves = |first| assert!(scene.reserve(&requests(first)).iter().all(|one| taken(one) == 1));
    // Planned while there are no keys, and done again when there are many.
    reserves(1);
    database.run(MANY_KEYS);
    reserves(3);
    database.end_others();
    let (entries, rows) = read(&mut database, "idempotency_keys");
    assert!(entries + rows < 10, "{entries} index entries and {rows} rows were read for a few keys");
}

#[tokio::test]
async fn who_may_soon_hold_too_much_is_counted_alone() {
    let scene = Scene::new(Database::Postgres, &[("laptop", 9), ("phone", 9)]).await;
    // Of different devices, so that no two meet.
    let request = |device: &str| Reserve { device: Some(device.parse().unwrap()), ..scene.request() };
    let reserve = |most: &[u32]| -> Vec<_> {
        let limits = |total| Some(HoldLimits { total, per_device: 9 });
        let capped = |(most, device)| Reserve { limits: limits(most), ..request(device) };
        let requests: Vec<_> = most.iter().copied().zip(["laptop", "phone"]).map(capped).collect();
        scene.reserve(&requests).iter().map(taken).collect()
    };
    let lapsed = Reserve { until: scene.server.now(), ..request("phone") };
    assert_eq!(scene.reserve(&[request("laptop"), lapsed]).iter().map(taken).sum::<usize>(), 2);
    // One is held, and each request may bring 16 more.
    assert_eq!(reserve(&[16]), [0]);
    assert_eq!(reserve(&[17]), [1]);
    assert_eq!(reserve(&[33, 33]), [0, 0]);
    assert_eq!(reserve(&[34, 34]), [1, 1]);
}

#[tokio::test]
async fn who_may_soon_hold_too_much_of_one_is_counted_alone() {
    let scene = Scene::new(Database::Postgres, &[("laptop", 9), ("phone", 9)]).await;
    let reserve = |per_device: u32, devices: &[&str]| -> Vec<_> {
        let limits = Some(HoldLimits { total: 1_000, per_device });
        let of = |device: &&str| Reserve { limits, device: Some(device.parse().unwrap()), ..scene.request() };
        scene.reserve(&devices.iter().map(of).collect::<Vec<_>>()).iter().map(taken).collect()
    };
    assert_eq!(reserve(1, &["laptop"]), [1]);
    assert_eq!(reserve(1, &["laptop"]), [0]);
    assert_eq!(reserve(2, &["laptop", "phone"]), [0, 0]);
    assert_eq!(reserve(3, &["laptop", "phone"]), [1, 1]);
    // Another reservation of the same user's, which is counting.
    let mut other = scene.server.database();
    other.run("BEGIN; SELECT pg_advisory_xact_lock(1802072432, hashtext('bob'))");
    assert_eq!(reserve(100, &["laptop"]), [0]);
    other.run("SELECT pg_advisory_xact_lock(1802072432, hashtext('carol')); ROLLBACK");
    assert_eq!(reserve(100, &["laptop"]), [1]);
}

/// Left for alone, or refused at once.
fn is_refused(outcome: Option<&Result<Spent, ReservationError>>, error: ReservationError) -> bool {
    outcome.is_none_or(|outcome| outcome.as_ref().is_err_and(|is| *is == error))
}

#[rstest]
#[tokio::test]
async fn spends_are_each_their_holders_own(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let scene = Scene::new(db, &[("laptop", 50)]).await;
    let (mine, late) = (scene.request(), scene.request());
    for request in [&mine, &late] {
        scene.store.reserve(request, scene.as_of()).unwrap().unwrap();
    }
    let owner = scene.alice.device.0;
    let spend = |nonce, by| Spend {
        reservation: ReservationId { owner, nonce },
        by,
        group_id: b"friends".to_vec(),
        bind: None,
        proof: Proof::None,
    };
    let now = scene.server.now() + SignedDuration::from_hours(1);
    let spends = [spend(mine.nonce, scene.bob), spend(late.nonce, scene.alice), spend(Uuid::new_v4(), scene.bob)];
    let outcomes = scene.store.spend_batch(&spends, now).unwrap();
    assert!(matches!(outcomes[0], Some(Ok(_))), "a late spend of what nobody else has holds: {outcomes:?}");
    assert!(is_refused(outcomes[1].as_ref(), ReservationError::NotYours));
    assert!(is_refused(outcomes[2].as_ref(), ReservationError::Unknown), "{outcomes:?}");
    // Twice at the same moment it is spent once, and noted once.
    let twice = [spend(late.nonce, scene.bob), spend(late.nonce, scene.bob)];
    let outcomes = scene.store.spend_batch(&twice, now).unwrap();
    assert!(outcomes.iter().any(|one| matches!(one, Some(Ok(_)))), "{outcomes:?}");
    assert_eq!(
        (scene.count("key_packages WHERE state = 'spent'"), scene.count("audit_events WHERE action = 'spend'")),
        (2, 2)
    );
}

/// A request with an ended token is refused in any batch, and does not affect the other requests.
#[rstest]
#[tokio::test]
async fn an_ended_token_takes_no_part(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let scene = Scene::new(db, &[("laptop", 9)]).await;
    let ended = ShownToken { token_hash: [7; 32], ..scene.bob };
    let keyed = Reserve { by: ended, ..scene.keyed(1) };
    let requests = [scene.request(), Reserve { by: ended, ..scene.request() }, keyed.clone()];
    let outcomes = scene.reserve(&requests);
    assert!(matches!(&outcomes[0], Some(Ok(reserved)) if reserved.reservations.len() == 1), "{outcomes:?}");
    for one in &outcomes[1..] {
        assert!(matches!(one, None | Some(Err(ReserveError::TokenRevoked))), "{outcomes:?}");
    }
    // Each alone in its batch, which is another statement.
    for request in [&requests[1], &keyed] {
        let outcome = scene.reserve(std::slice::from_ref(request)).remove(0);
        assert!(matches!(outcome, None | Some(Err(ReserveError::TokenRevoked))), "{outcome:?}");
        let alone = scene.store.reserve(request, scene.as_of()).unwrap();
        assert_eq!(alone.unwrap_err(), ReserveError::TokenRevoked);
    }
    let reservation = ReservationId { owner: scene.alice.device.0, nonce: requests[0].nonce };
    let spend = |by| Spend { reservation, by, group_id: b"friends".to_vec(), bind: None, proof: Proof::None };
    let outcomes = scene.store.spend_batch(&[spend(ended)], scene.server.now()).unwrap();
    assert!(is_refused(outcomes[0].as_ref(), ReservationError::TokenRevoked), "{outcomes:?}");
    let alone = scene.store.spend(&spend(ended), scene.server.now()).unwrap();
    assert_eq!(alone.unwrap_err(), ReservationError::TokenRevoked);
    assert_eq!(scene.count("key_packages WHERE state = 'reserved'"), 1);
    assert_eq!(scene.count("idempotency_keys"), 0);
}
