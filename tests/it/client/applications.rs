//! Applications that process messages, or decide about identities, by themselves.

use std::sync::Arc;

use keypool_client::{Checking, Error, Event, IdentityCheck, LeafIdentity, MlsClient, Notice, Settings, Standing};
use keypool_openapi::MessageKind;
use keypool_server::config::Limits;
use keypool_validation::key_package::CredentialBinding;
use openmls::prelude::MlsMessageIn;
use rstest::rstest;
use serde_json::Value;
use tls_codec::Deserialize as _;

use super::{
    helpers::{invite, start, user},
    impostors::{HONEST, with_mallory},
};
use crate::support::{Anywhere, Database, Device, Owner, Proxy, TestServer, data_directory, decode, new_device};

/// The messages in the queue, for an application that processes them itself.
async fn queued(owner: &Owner) -> Vec<MlsMessageIn> {
    let page = owner.http().get("/messages").await.ok();
    let read = |one: &Value| MlsMessageIn::tls_deserialize(&mut &*decode(one["message"].as_str().unwrap())).unwrap();
    page["messages"].as_array().unwrap().iter().map(read).collect()
}

#[rstest]
#[tokio::test]
async fn an_application_that_processes_messages_by_itself_has_them_checked(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = start(db).await;
    let (group, owners, mut mallory) = with_mallory(&server).await;
    let (alice, bob) = (&owners[0], &owners[1]);
    bob.membership().send(&group.group_id, "hello").await.unwrap();
    mallory.proposes_another_key(&HONEST).await;
    mallory.renames_itself("alice/d1", &HONEST).await;
    let mut mls_group = alice.load_group(&group.group_id).unwrap();
    let mut outcomes = Vec::new();
    for message in queued(alice).await {
        let message = message.try_into_protocol_message().unwrap();
        let processed = mls_group.process_message(&alice.provider(), message).unwrap();
        outcomes.push(alice.membership().check_message(&mls_group, &processed).await);
    }
    let [Ok(said), Err(proposed), Err(committed)] = outcomes.as_slice() else { panic!("{outcomes:?}") };
    assert_eq!(said, &[]);
    for (refused, reason) in [(proposed, "signature key"), (committed, "changes its identity")] {
        assert!(matches!(refused, Error::WrongIdentity { why, .. } if why.contains(reason)), "{refused}");
    }
    // An honest Commit is merged, and the check returns the notices for people.
    let (group, owners) = {
        let carol = Owner::of(&server, "carol").await;
        let dave = Owner::of(&server, "dave").await;
        let group = carol.membership().create_named_group("others").unwrap();
        invite(&carol, &group, &["alice"]).await;
        alice.hears().await;
        (group, [carol, dave])
    };
    let reserved = alice.reserve(&user("dave"), None, None, None).await.unwrap().reservations.remove(0);
    alice.release(reserved.reservation_id).await.unwrap();
    owners[1].rotate(&|_| ()).await.unwrap();
    invite(&owners[0], &group, &["dave"]).await;
    let mut mls_group = alice.load_group(&group.group_id).unwrap();
    let message = queued(alice).await.remove(0).try_into_protocol_message().unwrap();
    let processed = mls_group.process_message(&alice.provider(), message).unwrap();
    let notices = alice.membership().check_message(&mls_group, &processed).await.unwrap();
    let [Notice::NewSignatureKey { member, since: Some(_) }] = notices.as_slice() else { panic!("{notices:?}") };
    assert_eq!(member, "dave/laptop");
}

/// An application with a directory of its own.
struct Nobody;

impl IdentityCheck for Nobody {
    fn check<'a>(&'a self, leaves: &'a [LeafIdentity]) -> Checking<'a> {
        let unknown = |leaf: &LeafIdentity| Standing::Unknown { why: format!("{} is not on the list", leaf.name()) };
        Box::pin(async move { Ok(leaves.iter().map(unknown).collect()) })
    }
}

#[rstest]
#[tokio::test]
async fn an_application_decides_by_a_directory_of_its_own(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = start(db).await;
    let (alice, bob) = (Owner::of(&server, "alice").await, Owner::of(&server, "bob").await);
    let bob = bob.with_identity_check(Arc::new(Nobody));
    let group = alice.membership().create_named_group("friends").unwrap();
    invite(&alice, &group, &["bob"]).await;
    let heard = bob.hears().await;
    let Event::Refused { kind: MessageKind::Welcome, why, .. } = &heard[0] else { panic!("{heard:?}") };
    assert!(why.contains("alice/laptop is not on the list"), "{why}");
    let refused = bob.reserve(&user("alice"), None, None, None).await.unwrap_err();
    assert!(refused.with_causes().contains("not on the list"), "{}", refused.with_causes());
}

/// An application whose credentials are e-mail addresses, each of which belongs to one device.
struct Addresses;

impl IdentityCheck for Addresses {
    fn check<'a>(&'a self, leaves: &'a [LeafIdentity]) -> Checking<'a> {
        let standing = |leaf: &LeafIdentity| {
            let of = leaf.reserved_for.as_ref().map(|device| format!("{}@example.org", device.user));
            match of {
                Some(address) if address != leaf.name() => Standing::Unknown { why: format!("it is not {address}") },
                _ => Standing::Current { since: None },
            }
        };
        Box::pin(async move { Ok(leaves.iter().map(standing).collect()) })
    }
}

#[rstest]
#[tokio::test]
async fn an_application_decides_which_credential_a_device_has(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = TestServer::start_with(db, |config| {
        config.limits = Limits::Off;
        config.credential_binding = CredentialBinding::Off;
    })
    .await;
    let alice = Owner::of(&server, "alice").await;
    let upload = async |name: &str, identity: &str| {
        let device = server.anyone().registered(name, "phone").await;
        device
            .uploaded(&[Device::of_identity(identity).key_package(), Device::of_identity(identity).key_package()])
            .await;
    };
    upload("bob", "bob@example.org").await;
    upload("eve", "bob@example.org").await;
    let foreign = alice.reserve(&user("bob"), None, None, None).await.unwrap_err();
    assert!(matches!(foreign, Error::ForeignKeyPackage { .. }), "{foreign}");
    let alice = alice.with_identity_check(Arc::new(Addresses));
    let mut group = alice.create_group(b"friends").unwrap();
    let invitation = alice.prepare_invitation(&mut group, &user("bob")).await.unwrap();
    assert_eq!(invitation.added.len(), 1);
    // The server hands out a KeyPackage with Bob's credential for Eve.
    let refused = alice.reserve(&user("eve"), None, None, None).await.unwrap_err();
    assert!(refused.with_causes().contains("it is not eve@example.org"), "{}", refused.with_causes());
}

#[rstest]
#[tokio::test]
async fn an_application_brings_its_own_http_client(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = start(db).await;
    let proxy = Proxy::before(&server.base).await;
    let http = reqwest::Client::builder().user_agent("a-messenger/1.0").build().unwrap();
    let settings = Settings { transport: Some(Arc::new(http)), ..Settings::default() };
    let directory = data_directory();
    let new = new_device(&proxy.base, "alice");
    let (_, report) = MlsClient::init(directory.path(), &new, settings, &|_| ()).await.unwrap();
    assert_eq!(report.pool.fresh, 32);
    let seen = proxy.seen();
    assert!(seen.len() > 2 && seen.iter().all(|head| head.contains("user-agent: a-messenger/1.0")), "{seen:?}");
}
