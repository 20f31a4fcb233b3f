//! A pool in memory, with a transport of its own: the example, and random histories of its device.

use std::{cell::Cell, collections::HashMap, process::Command};

use jiff::SignedDuration;
use keypool_client::{
    Error, KeyPackageMetadata, KeyPackagePool, KeyPackagePoolConfig, PoolHistory, PoolStore as _,
    openmls::prelude::{
        MlsGroupJoinConfig, MlsMessageBodyIn, MlsMessageIn, StagedWelcome, Welcome, tls_codec::Deserialize as _,
    },
};
use keypool_openapi::{Reservation, RevokeRequest};
use openmls_traits::OpenMlsProvider as _;
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use rstest::rstest;

use self::example::{Device, MemoryStore};
use super::{
    helpers::{invited, start},
    random::{HISTORIES, Step, step},
};
use crate::support::{self, Database, Owner, TestServer, now, output};

#[path = "../../../client/examples/pool_only.rs"]
#[expect(dead_code, reason = "the test has a story of its own")]
mod example;

#[rstest]
#[tokio::test]
async fn the_example_keeps_its_pool_full(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = start(db).await;
    let base = server.base.clone();
    let run = move || output(Command::new(support::example("pool_only")).arg(base));
    let ran = tokio::task::spawn_blocking(run);
    assert_eq!(ran.await.unwrap(), "33 uploaded\n25 uploaded again, 25 spent, 32 fresh\n");
}

/// All that a store has: its rows, its history and its keys.
type Backup = (Vec<KeyPackageMetadata>, PoolHistory, HashMap<Vec<u8>, Vec<u8>>);

struct History<'s> {
    server: &'s TestServer,
    alice: Device,
    user: String,
    bob: &'s Owner,
    held: Vec<Reservation>,
    backup: Option<Backup>,
    groups: usize,
}

impl History<'_> {
    fn pool(&self) -> KeyPackagePool<'_, MemoryStore> {
        KeyPackagePool::new(&self.alice.store, &KeyPackagePoolConfig::DEFAULT)
    }

    async fn take(&mut self, step: &Step) {
        let user = self.user.parse().unwrap();
        match *step {
            Step::Refresh => self.refresh().await,
            Step::RevokeAll => {
                self.alice.api.revoke_key_packages(&RevokeRequest { refs: None, all: Some(true) }).await.unwrap();
            }
            Step::Reserve(count) => {
                for _ in 0..count {
                    let Ok(answer) = self.bob.reserve(&user, None, None, None).await else { break };
                    self.held.extend(answer.reservations);
                }
            }
            Step::Spend if !self.held.is_empty() => {
                let _ = self.bob.spend(self.held.remove(0).reservation_id, b"friends").await;
            }
            Step::Release if !self.held.is_empty() => {
                let _ = self.bob.release(self.held.remove(0).reservation_id).await;
            }
            Step::Join => self.join().await,
            Step::Advance(seconds) if self.server.now() < now() + SignedDuration::from_mins(50) => {
                self.server.advance(SignedDuration::from_secs(seconds));
            }
            Step::BackUp => {
                let store = &self.alice.store;
                let keys = store.provider().storage().values.read().unwrap().clone();
                self.backup = Some((store.metadata().unwrap(), store.history().unwrap(), keys));
            }
            Step::Restore => self.restore(),
            // The device of the example keeps its key.
            Step::Spend | Step::Release | Step::Advance(_) | Step::Rotate => {}
        }
    }

    fn restore(&mut self) {
        let Some((rows, history, keys)) = &self.backup else { return };
        let store = MemoryStore::default();
        for row in rows {
            store.create_pool_metadata(row).unwrap();
        }
        store.set_history(history).unwrap();
        store.provider().storage().values.write().unwrap().clone_from(keys);
        self.alice.store = store;
    }

    /// Bob adds her, and she joins as an application with its own OpenMLS does.
    async fn join(&mut self) {
        self.groups += 1;
        let mut group = self.bob.create_group(format!("{} {}", self.user, self.groups).as_bytes()).unwrap();
        let Ok(invitation) = invited(self.bob, &mut group, &self.user.parse().unwrap()).await else { return };
        let known = self.pool().has_keys(&invitation.added[0].keypackage_ref).unwrap();
        let message = MlsMessageIn::tls_deserialize_exact(&invitation.welcome).unwrap();
        let MlsMessageBodyIn::Welcome(welcome) = message.extract() else { panic!("no Welcome") };
        assert_eq!(self.joined(welcome).is_some(), known);
    }

    fn joined(&self, welcome: Welcome) -> Option<()> {
        let refs = welcome.secrets().iter().map(|secrets| secrets.new_member().as_slice().to_vec().into());
        let refs: Vec<_> = refs.collect();
        let config = MlsGroupJoinConfig::builder().use_ratchet_tree_extension(true).build();
        let provider = self.alice.store.provider();
        StagedWelcome::new_from_welcome(provider, &config, welcome, None).ok()?.into_group(provider).ok()?;
        self.pool().forget_joined(&refs).ok()
    }

    async fn refresh(&mut self) {
        let report = match self.alice.refresh().await {
            Err(Error::TwoClients { .. }) if self.backup.is_some() => {
                // Restored more than once. There is no second client, so the application has it forget the first time.
                let history = PoolHistory { foreign_at: None, ..self.alice.store.history().unwrap() };
                self.alice.store.set_history(&history).unwrap();
                self.alice.refresh().await
            }
            report => report,
        };
        let report = report.unwrap();
        assert!(self.pool().agrees_with(&report.pool).unwrap(), "{report:?}");
        assert!(report.pool.fresh >= 8 && report.pool.last_resort.present, "{report:?}");
        let again = self.alice.refresh().await.unwrap();
        assert!(again.changed_nothing(), "{again:?}");
    }

    fn is_sound(&self) {
        let rows = self.alice.store.metadata().unwrap();
        assert!(rows.iter().all(|row| self.pool().has_keys(&row.keypackage_ref).unwrap()));
        assert_eq!(self.pool().count_by_status().unwrap().values().sum::<usize>(), rows.len());
    }
}

/// The histories of [`super::random`], without SQLite and without [`keypool_client::MlsClient`].
#[rstest]
fn a_pool_in_memory_is_sound_whatever_happens_to_it(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let server = runtime.block_on(start(db));
    let bob = runtime.block_on(Owner::of(&server, "bob"));
    let number = Cell::new(0);
    let config = Config { cases: HISTORIES, failure_persistence: None, max_shrink_iters: 64, ..Config::default() };
    let outcome = TestRunner::new(config).run(&prop::collection::vec(step(), 1..16), |steps| {
        number.set(number.get() + 1);
        runtime.block_on(async {
            let user = format!("alice-{}", number.get());
            let alice = Device::register(&server.base, format!("{user}/laptop").parse().unwrap()).await.unwrap();
            alice.refresh().await.unwrap();
            let (held, backup) = (Vec::new(), None);
            let mut history = History { server: &server, alice, user, bob: &bob, held, backup, groups: 0 };
            for step in &steps {
                history.take(step).await;
                history.is_sound();
            }
            history.refresh().await;
            history.is_sound();
        });
        Ok(())
    });
    outcome.unwrap();
}
