//! The audit trail: each event of an owner's KeyPackages, with its actor and its time.

use jiff::{SignedDuration, Timestamp};
use rstest::rstest;
use serde_json::{Value, json};

use crate::support::{ADMIN_TOKEN, Anywhere, Database, Device, Http, TestServer, Where, decode, group};

/// Alice, whose KeyPackages it is about, and Bob.
pub struct Scene {
    pub server: TestServer,
    pub alice: Http,
    pub device: Device,
    pub bob: Http,
}

pub async fn scene(db: impl Into<Where>) -> Scene {
    let server = TestServer::start(db).await;
    let alice = server.anyone().registered("alice", "laptop").await;
    let bob = server.anyone().registered("bob", "phone").await;
    Scene { server, alice, device: Device::new("alice", "laptop"), bob }
}

async fn events(caller: &Http, query: &str) -> Vec<Value> {
    let page = caller.get(&format!("/keypackages/audit{query}")).await.ok();
    page["events"].as_array().unwrap().clone()
}

/// All that the server tells an owner about her pool.
async fn all_that_is_told(alice: &Http) -> String {
    let mut told = String::new();
    for path in
        ["/keypackages/audit", "/keypackages/inventory", "/keypackages/status", "/messages", "/users/alice/devices"]
    {
        told += &alice.get(path).await.text;
    }
    told
}

/// The owner of a reserved KeyPackage cannot take the first epoch of the group: its id is not known before the spend.
#[rstest]
#[tokio::test]
async fn an_owner_sees_the_id_of_a_group_when_a_package_is_spent_for_it_and_not_before(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = TestServer::start_with(db, |config| config.admin_token = Some(ADMIN_TOKEN.into())).await;
    let second = server.beside(|_| {}).await;
    let anyone = server.anyone();
    let (alice, bob) = (anyone.registered("alice", "laptop").await, anyone.registered("bob", "phone").await);
    let carol = anyone.registered("carol", "laptop").await;
    alice.uploaded(&Device::new("alice", "laptop").key_packages(3)).await;
    carol.uploaded(&Device::new("carol", "laptop").key_packages(1)).await;
    let reserved_for = async |user: &str, name: &str| {
        let request = json!({"target_user": user, "group_id": group(name)});
        bob.post("/keypackages/reserve", &request).await.ok()["reservations"][0].clone()
    };
    let first = reserved_for("alice", "friends").await;
    reserved_for("alice", "friends").await;
    reserved_for("alice", "others").await;
    reserved_for("carol", "friends").await;

    let digests = async |owner: &Http| -> Vec<Value> {
        let trail = events(owner, "").await;
        trail.into_iter().filter(|event| event["action"] == "reserve").map(|event| event["group_id"].clone()).collect()
    };
    // The first that ask make the key, and get the same one.
    let at_second = alice.at(&second.base);
    let (told, other) = tokio::join!(digests(&alice), digests(&at_second));
    assert_eq!(told, other);
    let [others, again, friends] = told.as_slice() else { panic!("{told:?}") };
    assert_eq!(friends, again);
    assert_ne!(friends, others);
    assert_ne!(digests(&carol).await[0], *friends, "two owners can compare what they see");
    assert_eq!(decode(friends.as_str().unwrap()).len(), 32);
    let shown = |text: &str| text.contains(&group("friends")) || text.contains(&hex::encode("friends"));
    assert!(!shown(&all_that_is_told(&alice).await));
    let operator = anyone.with_token(ADMIN_TOKEN).get("/keypackages/audit?user=alice").await.text;
    assert!(operator.contains(friends.as_str().unwrap()) && !shown(&operator));

    // The key outlives the servers.
    drop(second);
    let server = TestServer::start_at(server.stopped_at(), |_| {}).await;
    let (alice, bob) = (alice.at(&server.base), bob.at(&server.base));
    assert_eq!(digests(&alice).await, told);
    bob.spend(&first, "friends").await.ok();
    let trail = events(&alice, "").await;
    assert_eq!((&trail[0]["action"], &trail[0]["group_id"]), (&json!("spend"), &json!(group("friends"))));
    assert_eq!(digests(&alice).await, told);
}

fn second(time: Timestamp) -> String {
    Timestamp::from_second(time.as_second()).unwrap().to_string()
}

#[rstest]
#[tokio::test]
async fn each_step_writes_one_row_that_says_it_all(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
    #[values(false, true)] is_swept: bool,
) {
    let Scene { server, alice, device, bob } = scene(db).await;
    alice.uploaded(&[device.key_package()]).await;
    let uploaded_at = second(server.now());
    server.advance(SignedDuration::from_secs(10));
    let request = json!({"target_user": "alice", "group_id": group("friends"), "ttl": 30});
    let reserve = async || bob.post("/keypackages/reserve", &request).await.ok()["reservations"][0].clone();
    let first = reserve().await;
    let reserved_at = second(server.now());
    server.advance(SignedDuration::from_secs(5));
    bob.release(&first).await.ok();
    bob.release(&first).await.ok();
    let second_one = reserve().await;
    server.advance(SignedDuration::from_secs(31));
    let lapsed_at = second_one["expires_at"].clone();
    if is_swept {
        server.sweep().await;
    }
    let third = reserve().await;
    bob.spend(&third, "others").await.ok();
    bob.spend(&third, "others").await.ok();
    // None of these changes anything.
    bob.spend(&third, "friends").await;
    alice.spend(&third, "others").await;
    bob.spend(&second_one, "friends").await;

    let trail = events(&alice, "").await;
    let actions: Vec<_> = trail.iter().rev().map(|event| event["action"].as_str().unwrap()).collect();
    assert_eq!(actions, ["upload", "reserve", "release", "reserve", "lapse", "reserve", "spend"]);
    let (owner, actor) = (json!({"user": "alice", "device": "laptop"}), json!({"user": "bob", "device": "phone"}));
    for event in &trail {
        assert_eq!((&event["owner"], &event["keypackage_ref"]), (&owner, &first["keypackage_ref"]));
    }
    let [spent, _, lapse, _, release, reserved, upload] = <[Value; 7]>::try_from(trail).unwrap();
    assert_eq!(
        upload,
        json!({"id": upload["id"], "at": uploaded_at, "action": "upload", "keypackage_ref": first["keypackage_ref"],
            "owner": owner, "actor": owner, "reservation_id": null, "group_id": null, "last_resort": false,
            "until": first["not_after"], "signature_key": null, "leaves": 0})
    );
    assert_eq!(
        reserved,
        json!({"id": reserved["id"], "at": reserved_at, "action": "reserve", "keypackage_ref": first["keypackage_ref"],
            "owner": owner, "actor": actor, "reservation_id": first["reservation_id"], "group_id": reserved["group_id"],
            "last_resort": false, "until": first["expires_at"], "signature_key": null, "handout": 0, "leaves": 1})
    );
    assert_eq!((&release["actor"], &release["reservation_id"]), (&actor, &first["reservation_id"]));
    assert_eq!((&lapse["at"], &lapse["reservation_id"]), (&lapsed_at, &second_one["reservation_id"]));
    assert_eq!((&lapse["actor"], &lapse["until"]), (&actor, &json!(null)));
    assert_eq!((&spent["actor"], &spent["group_id"]), (&actor, &json!(group("others"))));
    assert_eq!(spent["reservation_id"], third["reservation_id"]);
}

#[rstest]
#[tokio::test]
async fn withdrawing_expiring_and_the_last_resort_are_noted_too(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let Scene { server, alice, device, bob } = scene(db).await;
    alice.uploaded(&[device.last_resort()]).await;
    let first = bob.reserved("alice").await;
    bob.spend(&first, "friends").await.ok();
    bob.spend(&first, "friends").await.ok();
    alice.uploaded(&[device.last_resort()]).await;
    let end = server.now() + SignedDuration::from_hours(1);
    alice.uploaded(&Device::new("alice", "laptop").valid_until(end).key_packages(1)).await;
    server.advance(SignedDuration::from_hours(1));
    server.sweep().await;
    server.sweep().await;
    alice.post("/keypackages/revoke", &json!({"all": true})).await.ok();
    alice.post("/keypackages/revoke", &json!({"all": true})).await.ok();
    let trail = events(&alice, "").await;
    let told: Vec<_> =
        trail.iter().rev().map(|event| (event["action"].as_str().unwrap(), &event["last_resort"])).collect();
    let (yes, no) = (&json!(true), &json!(false));
    assert_eq!(
        told,
        [
            ("upload", yes),
            ("reserve", yes),
            ("spend", yes),
            ("revoke", yes),
            ("upload", yes),
            ("upload", no),
            ("expire", no),
            ("revoke", yes)
        ]
    );
    let expiry = &trail[1];
    assert_eq!((&expiry["actor"], &expiry["at"]), (&json!(null), &trail[2]["until"]));
}

#[rstest]
#[tokio::test]
async fn pages_have_no_gaps_and_nothing_twice(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let Scene { server: _server, alice, device, bob } = scene(db).await;
    alice.uploaded(&device.key_packages(23)).await;
    bob.reserved("alice").await;
    bob.uploaded(&Device::new("bob", "phone").key_packages(5)).await;
    let tablet = alice.registered("alice", "tablet").await;
    tablet.uploaded(&Device::new("alice", "tablet").key_packages(2)).await;
    for limit in [1, 5, 24, 100] {
        let known = events(&alice, "?limit=1000").await.len();
        let (mut ids, mut next) = (Vec::new(), json!(null));
        loop {
            let before = if next.is_null() { String::new() } else { format!("&before={next}") };
            let page = alice.get(&format!("/keypackages/audit?limit={limit}{before}")).await.ok();
            // An event that happens in between is on no older page.
            alice.uploaded(&[device.key_package()]).await;
            let events = page["events"].as_array().unwrap();
            assert!(events.len() <= limit);
            ids.extend(events.iter().map(|event| event["id"].as_i64().unwrap()));
            next = page["next"].clone();
            if next.is_null() {
                break;
            }
        }
        assert_eq!(ids.len(), known, "by {limit}");
        assert!(ids.is_sorted_by(|one, other| one > other), "by {limit}: {ids:?}");
    }
    let total = usize::try_from(alice.status().await["total"].as_u64().unwrap()).unwrap();
    for limit in [1, 5, total - 1, total, total + 1] {
        let (mut refs, mut next) = (Vec::<String>::new(), json!(null));
        loop {
            let after = next.as_str().map_or_else(String::new, |next| format!("&after={next}"));
            let page = alice.get(&format!("/keypackages/inventory?limit={limit}{after}")).await.ok();
            let items = page["keypackages"].as_array().unwrap();
            assert!(items.len() <= limit);
            refs.extend(items.iter().map(|item| item["keypackage_ref"].as_str().unwrap().to_owned()));
            next = page["next"].clone();
            if next.is_null() {
                break;
            }
        }
        assert_eq!(refs.len(), total, "by {limit}");
        assert!(refs.is_sorted_by(|one, other| one < other), "by {limit}");
    }
    for bad in ["limit=0", "limit=1001", "limit=-1", "limit=x", "after=x", "before=x", "page=1"] {
        for list in ["inventory", "audit"] {
            assert_eq!(alice.get(&format!("/keypackages/{list}?{bad}")).await.status, 400, "{list}?{bad}");
        }
    }
    assert_eq!(events(&tablet, "").await.len(), 2, "a device reads another's trail");
}
