//! Members who change a group at the same time, or before they have read the changes of others.

use std::pin::Pin;

use keypool_client::Error;
use rstest::rstest;
use tokio::sync::OwnedRwLockWriteGuard;

use super::helpers::{behind_a_proxy, epoch, group_of, invite, members, names, start, user};
use crate::support::{Anywhere, Database, Fault, Owner, Proxy};

/// Lets a call go on until so many requests of it that begin so are answered, and holds those that come after it.
pub async fn held_after<F: Future>(
    proxy: &Proxy,
    mut call: Pin<&mut F>,
    (beginning, times): (&str, usize),
) -> OwnedRwLockWriteGuard<()> {
    proxy.seen();
    while proxy.passed().iter().filter(|head| head.starts_with(beginning)).count() < times {
        assert!(futures_util::poll!(call.as_mut()).is_pending());
        tokio::task::yield_now().await;
    }
    proxy.held().await
}

/// A member's leaf goes to somebody else while another removes that member: a leaf is no name.
#[rstest]
#[tokio::test]
async fn who_took_the_place_of_a_removed_member_stays(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = start(db).await;
    let (proxy, alice) = behind_a_proxy(&server, "alice").await;
    let (bob, carol, dave) =
        (Owner::of(&server, "bob").await, Owner::of(&server, "carol").await, Owner::of(&server, "dave").await);
    let group = alice.membership().create_named_group("friends").unwrap();
    invite(&alice, &group, &["bob", "carol"]).await;
    bob.hears().await;
    let (membership, whom) = (alice.membership(), user("carol"));
    let removal = membership.remove(&group.group_id, &whom);
    tokio::pin!(removal);
    let gate = held_after(&proxy, removal.as_mut(), ("GET /messages", 1)).await;
    bob.membership().remove(&group.group_id, &whom).await.unwrap();
    invite(&bob, &group, &["dave"]).await;
    drop(gate);
    removal.await.unwrap();
    for owner in [&alice, &bob, &dave] {
        owner.hears().await;
        assert_eq!(members(owner, &group), names(["alice", "bob", "dave"]), "{}", owner.name());
        assert_eq!(epoch(owner, &group), 3, "nothing was left to commit to");
    }
    drop(carol);
}

#[rstest]
#[tokio::test]
async fn whom_another_has_added_is_spared_and_the_others_are_added(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = start(db).await;
    let (group, owners) = group_of(&server, &["alice", "bob"]).await;
    let (carol, dave) = (Owner::of(&server, "carol").await, Owner::of(&server, "dave").await);
    invite(&owners[1], &group, &["carol"]).await;
    // Alice has not read that.
    assert_eq!(invite(&owners[0], &group, &["carol", "dave"]).await, names(["dave"]));
    for owner in [&owners[0], &owners[1], &carol, &dave] {
        owner.hears().await;
        assert_eq!(members(owner, &group), names(["alice", "bob", "carol", "dave"]), "{}", owner.name());
        assert_eq!(owner.status().await.unwrap().reserved, 0, "a reservation of {} is left over", owner.name());
    }
}

#[rstest]
#[tokio::test]
async fn a_server_cannot_choose_who_comes_into_a_group(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = start(db).await;
    let (proxy, alice) = behind_a_proxy(&server, "alice").await;
    let (bob, eve) = (Owner::of(&server, "bob").await, Owner::of(&server, "eve").await);
    let group = alice.membership().create_named_group("friends").unwrap();
    proxy.fail_on("POST /keypackages/reserve", Fault::Altered("\"bob\"", "\"eve\""));
    let refused = alice.membership().invite(&group.group_id, &[user("bob")]).await.unwrap_err();
    let is_eve = |error: &Error| matches!(error, Error::ForeignKeyPackage { found, .. } if found == "eve/laptop");
    assert!(is_eve(&refused), "{refused}");
    assert_eq!((members(&alice, &group), epoch(&alice, &group)), (names(["alice"]), 0));
    let status = eve.status().await.unwrap();
    assert_eq!((status.reserved, status.spent), (0, 0));
    invite(&alice, &group, &["bob"]).await;
    bob.hears().await;
    assert_eq!(members(&bob, &group), names(["alice", "bob"]));
}
