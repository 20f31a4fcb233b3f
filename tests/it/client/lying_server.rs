//! A server that lies: it makes no client delete its keys early, and none that reads without end.

use jiff::{SignedDuration, Timestamp};
use keypool_client::{ApiClient, Error};
use keypool_openapi::KeyPackageRef;
use rstest::rstest;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::helpers::{behind_a_proxy, invite, start};
use crate::support::{Database, Owner, encode};

/// How many of these have their private keys.
fn with_keys(owner: &Owner, refs: &[KeyPackageRef]) -> usize {
    refs.iter().filter(|one| owner.pool().has_keys(one).unwrap()).count()
}

#[rstest]
#[tokio::test]
async fn a_server_that_lies_about_the_time_deletes_no_keys(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = start(db).await;
    let (proxy, alice) = behind_a_proxy(&server, "alice").await;
    let refs: Vec<_> = alice.inventory().await.unwrap().into_iter().map(|item| item.keypackage_ref).collect();
    let long_ago = server.now() - SignedDuration::from_hours(50);
    proxy.lies("GET /keypackages/status", move |status| {
        (status["at"], status["inventory_digest"]) = (json!(long_ago), json!(""));
    });
    proxy.lies("GET /keypackages/inventory", |page| {
        for item in page["keypackages"].as_array_mut().unwrap() {
            item["state"] = json!("revoked");
        }
    });
    alice.refresh().await.unwrap();
    proxy.is_honest();
    alice.refresh().await.unwrap();
    assert_eq!(with_keys(&alice, &refs), refs.len(), "a Welcome for them may be under way");

    // By either clock alone, the day is not over.
    alice.advance(SignedDuration::from_hours(25));
    alice.refresh().await.unwrap();
    assert_eq!(with_keys(&alice, &refs), refs.len());
    server.advance(SignedDuration::from_hours(25));
    alice.refresh().await.unwrap();
    assert_eq!(with_keys(&alice, &refs), 0);
}

/// The server names any state for all KeyPackages, and a time that is two days off.
#[rstest]
#[tokio::test]
async fn a_server_that_lies_about_states_deletes_no_keys_that_a_welcome_may_need(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
    #[values(-50, 50)] hours: i64,
    #[values(Some("revoked"), Some("retired"), Some("expired"), Some("spent"), None)] state: Option<&'static str>,
) {
    let server = start(db).await;
    let (proxy, alice) = behind_a_proxy(&server, "alice").await;
    let refs: Vec<_> = alice.inventory().await.unwrap().into_iter().map(|item| item.keypackage_ref).collect();
    let wrong = server.now() + SignedDuration::from_hours(hours);
    proxy.lies("GET /keypackages/status", move |status| {
        (status["at"], status["inventory_digest"]) = (json!(wrong), json!(""));
    });
    proxy.lies("GET /keypackages/inventory", move |page| match state {
        Some(state) => {
            for item in page["keypackages"].as_array_mut().unwrap() {
                item["state"] = json!(state);
            }
        }
        None => page["keypackages"] = json!([]),
    });
    // An error is fine, too.
    let _ = alice.refresh().await;
    let _ = alice.refresh().await;
    proxy.is_honest();
    alice.refresh().await.unwrap();
    alice.advance(SignedDuration::from_hours(25));
    alice.refresh().await.unwrap();
    assert_eq!(with_keys(&alice, &refs), refs.len(), "a Welcome for them may be under way");
}

#[rstest]
#[tokio::test]
async fn an_inventory_without_an_end_is_given_up(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = start(db).await;
    let (proxy, alice) = behind_a_proxy(&server, "alice").await;
    proxy.lies("GET /keypackages/inventory", |page| page["next"] = json!("11".repeat(32)));
    proxy.seen();
    let refused = alice.inventory().await.unwrap_err();
    assert!(matches!(&refused, Error::Answer { found, .. } if found.contains("next page")), "{refused}");
    assert_eq!(proxy.seen().iter().filter(|head| head.starts_with("GET /keypackages/inventory")).count(), 2);
    // Nor does one that goes on and on.
    proxy.is_honest();
    let next = std::sync::atomic::AtomicU64::new(1);
    proxy.lies("GET /keypackages/inventory", move |page| {
        let next = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        *page = json!({"keypackages": [], "next": format!("{next:064x}")});
    });
    let refused = alice.inventory().await.unwrap_err();
    assert!(matches!(&refused, Error::Answer { found, .. } if found.contains("more than 100 pages")), "{refused}");
    assert_eq!(proxy.seen().iter().filter(|head| head.starts_with("GET /keypackages/inventory")).count(), 100);
}

/// A page has as many items as were asked for, each of them large.
#[tokio::test]
async fn an_inventory_of_large_items_is_given_up() {
    let server = start(Database::Sqlite).await;
    let (proxy, alice) = behind_a_proxy(&server, "alice").await;
    proxy.lies("GET /keypackages/inventory", |page| {
        page["keypackages"][0]["group_id"] = json!(encode(&[7; 257]));
    });
    let refused = alice.inventory().await.unwrap_err();
    assert!(matches!(&refused, Error::Answer { found, .. } if found.contains("group id")), "{refused}");
}

/// The database makes no difference.
#[tokio::test]
async fn a_queue_that_goes_on_and_on_is_left_for_another_time() {
    let server = start(Database::Sqlite).await;
    let (proxy, bob) = behind_a_proxy(&server, "bob").await;
    let next = std::sync::atomic::AtomicU64::new(1);
    proxy.lies("GET /messages", move |page| {
        page["messages"] = json!([{
            "id": next.fetch_add(1, std::sync::atomic::Ordering::Relaxed), "kind": "message", "group_id": "AAAA",
            "from": {"user": "alice", "device": "laptop"}, "message": "", "sent_at": Timestamp::UNIX_EPOCH,
        }]);
    });
    proxy.seen();
    assert_eq!(bob.membership().receive(0).await.unwrap().len(), 1_000);
    assert_eq!(proxy.seen().iter().filter(|head| head.starts_with("GET /messages")).count(), 1_000);
}

#[rstest]
#[tokio::test]
async fn a_queue_without_an_end_is_given_up_and_what_came_is_there(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = start(db).await;
    let alice = Owner::of(&server, "alice").await;
    let (proxy, bob) = behind_a_proxy(&server, "bob").await;
    let group = alice.membership().create_named_group("friends").unwrap();
    invite(&alice, &group, &["bob"]).await;
    bob.hears().await;
    let message = json!({
        "id": 1, "kind": "message", "group_id": keypool_openapi::Base64Bytes(group.group_id.clone()),
        "from": {"user": "alice", "device": "laptop"}, "message": "AAAA", "sent_at": Timestamp::UNIX_EPOCH,
    });
    proxy.lies("GET /messages", move |page| page["messages"] = json!([message]));
    let refused = bob.membership().receive(0).await.unwrap_err();
    assert!(matches!(&refused, Error::Answer { found, .. } if found.contains("acknowledged")), "{refused}");
    proxy.is_honest();
    alice.membership().send(&group.group_id, "hello").await.unwrap();
    assert_eq!(bob.texts().await, [("alice/laptop".to_owned(), "hello".to_owned())]);
    let message = json!({
        "id": 1, "kind": "message", "group_id": "AAAA", "from": {"user": "alice", "device": "laptop"}, "message": "",
        "sent_at": Timestamp::UNIX_EPOCH,
    });
    proxy.lies("GET /messages", move |page| page["messages"] = json!(vec![message.clone(); 101]));
    let refused = bob.membership().receive(0).await.unwrap_err();
    assert!(matches!(&refused, Error::Answer { found, .. } if found.contains("101 items")), "{refused}");
}

/// The answer has no end, and is not read to one.
#[tokio::test]
async fn a_body_without_an_end_is_given_up() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let serving = tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.unwrap();
        let _ = client.read(&mut [0; 4096]).await;
        let mut sent = 0;
        let mut part = b"HTTP/1.1 200 OK\r\n\r\n".to_vec();
        while client.write_all(&part).await.is_ok() {
            sent += part.len();
            part = vec![b' '; 1024 * 1024];
        }
        sent
    });
    let refused = ApiClient::new(&base, Some("token".into())).unwrap().get_key_package_status().await.unwrap_err();
    assert!(matches!(&refused, Error::Answer { found, .. } if found.contains("more than")), "{refused}");
    assert!(serving.await.unwrap() < 64 * 1024 * 1024);
}
