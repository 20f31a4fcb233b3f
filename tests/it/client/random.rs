//! Random histories of a device, its server and its backups: the local store is sound after every step, and one refresh
//! brings both sides to agree.

use jiff::SignedDuration;
use keypool_client::{Error, KeyPackagePoolConfig, KeyPackageStatus, RefreshReport};
use keypool_openapi::Reservation;
use keypool_server::config::Limits;
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use rstest::rstest;
use strum::IntoEnumIterator as _;
use tempfile::TempDir;

use super::helpers::invited;
use crate::support::{Database, Owner, TestServer, copy, new_device, now};

pub const HISTORIES: u32 = 24;

/// Something that happens to Alice's device.
#[derive(Clone, Debug)]
pub enum Step {
    Refresh,
    Rotate,
    RevokeAll,
    /// Bob reserves so many of her KeyPackages.
    Reserve(usize),
    /// Bob spends, or releases, the oldest that he holds.
    Spend,
    Release,
    /// Bob adds her to a group, and she joins.
    Join,
    Advance(i64),
    BackUp,
    Restore,
}

pub fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Refresh),
        1 => Just(Step::Rotate),
        1 => Just(Step::RevokeAll),
        3 => (1..20_usize).prop_map(Step::Reserve),
        2 => Just(Step::Spend),
        2 => Just(Step::Release),
        2 => Just(Step::Join),
        2 => (1..180_i64).prop_map(Step::Advance),
        1 => Just(Step::BackUp),
        1 => Just(Step::Restore),
    ]
}

struct History<'s> {
    server: &'s TestServer,
    alice: Option<Owner>,
    bob: &'s Owner,
    held: Vec<Reservation>,
    backup: Option<TempDir>,
    groups: usize,
}

impl History<'_> {
    fn alice(&mut self) -> &mut Owner {
        self.alice.as_mut().unwrap()
    }

    async fn take(&mut self, step: &Step) {
        let user = self.alice().identity().user().clone();
        match *step {
            Step::Refresh => self.refresh().await,
            Step::Rotate => {
                self.rotate().await;
            }
            Step::RevokeAll => {
                self.alice().revoke(None).await.unwrap();
            }
            Step::Reserve(count) => {
                for _ in 0..count {
                    // An empty pool has none to give.
                    let Ok(answer) = self.bob.reserve(&user, None, None, None).await else { break };
                    self.held.extend(answer.reservations);
                }
            }
            Step::Spend if !self.held.is_empty() => {
                // A spend of a revoked or lapsed KeyPackage is refused, and changes nothing.
                let _ = self.bob.spend(self.held.remove(0).reservation_id, b"friends").await;
            }
            Step::Release if !self.held.is_empty() => {
                let _ = self.bob.release(self.held.remove(0).reservation_id).await;
            }
            Step::Spend | Step::Release => {}
            Step::Join => self.join().await,
            // OpenMLS takes what begins up to an hour ahead of the machine's clock.
            Step::Advance(_) if self.server.now() > now() + SignedDuration::from_mins(50) => {}
            Step::Advance(seconds) => {
                self.server.advance(SignedDuration::from_secs(seconds));
                self.alice().advance(SignedDuration::from_secs(seconds));
            }
            Step::BackUp => {
                let backup = tempfile::tempdir().unwrap();
                copy(self.alice().directory(), backup.path());
                self.backup = Some(backup);
            }
            Step::Restore => {
                if let Some(backup) = &self.backup {
                    let restored = self.alice.take().unwrap().reopened(|directory| copy(backup.path(), directory));
                    self.alice = Some(restored);
                }
            }
        }
    }

    async fn join(&mut self) {
        self.groups += 1;
        let user = self.alice().identity().user().clone();
        let mut group = self.bob.create_group(format!("{user} {}", self.groups).as_bytes()).unwrap();
        let Ok(invitation) = invited(self.bob, &mut group, &user).await else { return };
        // A restored backup that has not been refreshed may lack the keys of what the server offers.
        let known = self.alice().pool().has_keys(&invitation.added[0].keypackage_ref).unwrap();
        assert_eq!(self.alice().join(&invitation.welcome).await.is_ok(), known);
    }

    /// A backup from before has a signature key that the server does not take any more: only a new registration would help.
    async fn rotate(&mut self) -> RefreshReport {
        self.backup = None;
        self.alice().rotate(&|_| ()).await.unwrap()
    }

    async fn refresh(&mut self) {
        let report = match self.alice().refresh().await {
            // Restored more than once: the way out is the one that the error names.
            Err(Error::TwoClients { .. }) if self.backup.is_some() => self.rotate().await,
            report => report.unwrap(),
        };
        assert!(self.alice().pool().agrees_with(&report.pool).unwrap(), "{report:?}");
        assert!(report.pool.fresh >= 8 && report.pool.last_resort.present, "{report:?}");
        let again = self.alice().refresh().await.unwrap();
        assert!(again.changed_nothing(), "{again:?}");
    }

    /// Each KeyPackage has one status and one set of keys, and there is nothing else.
    fn is_sound(&mut self) {
        let counts = self.alice().local_counts().unwrap();
        let (rows, keys, without) = self.alice().rows_and_keys().unwrap();
        assert_eq!(counts.values().sum::<usize>(), rows);
        assert_eq!((rows, without), (keys, 0));
        for status in KeyPackageStatus::iter() {
            assert_eq!(self.alice().pool().get_metadata_by_status(status).unwrap().len(), counts[&status]);
        }
    }
}

#[rstest]
fn a_device_is_sound_whatever_happens_to_it(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let server = runtime.block_on(TestServer::start_with(db, |config| config.limits = Limits::Off));
    let bob = runtime.block_on(Owner::of(&server, "bob"));
    let number = std::cell::Cell::new(0);
    let config = Config { cases: HISTORIES, failure_persistence: None, max_shrink_iters: 64, ..Config::default() };
    let outcome = TestRunner::new(config).run(&prop::collection::vec(step(), 1..16), |steps| {
        number.set(number.get() + 1);
        runtime.block_on(async {
            let new = new_device(&server.base, &format!("alice-{}", number.get()));
            let alice = Some(Owner::with(&server, &new, KeyPackagePoolConfig::default()).await.0);
            let (held, backup) = (Vec::new(), None);
            let mut history = History { server: &server, alice, bob: &bob, held, backup, groups: 0 };
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
