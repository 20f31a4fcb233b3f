//! What is asked for most, and done together with what else waits.

use std::sync::Arc;

use jiff::Timestamp;
use keypool_openapi::{ProblemType, ReserveResponse};

use super::{
    Pool, status,
    upload::{Intake, Offer, Settled},
};
use crate::{
    clock::Clock,
    coalesce::{Coalescer, Judged, NotTaken, Size},
    problem::Failure,
    store::{
        DeviceId, DeviceRow, PoolContents, Reserve, ReserveError, Spend, SpendError, Spent, Store, StoreError, View,
    },
};

/// Workers of each kind: enough that one fills its batch while another waits for the disk. SQLite has one writer.
const WORKERS: usize = 2;

/// The most that is done together. Beyond it a batch only makes those wait that came first.
const MOST: usize = 64;

/// The most uploads that are judged and stored together, which have up to 100 KeyPackages each.
const MOST_UPLOADS: usize = 8;

type Outcome<T, E> = Result<Result<T, E>, Failure>;

/// What a pool held, and when.
type Seen = (Arc<PoolContents>, Timestamp);

/// Where requests wait.
#[derive(Clone)]
pub(super) struct Queues {
    reserve: Coalescer<Reserve, Outcome<ReserveResponse, ReserveError>>,
    spend: Coalescer<Spend, Outcome<Spent, SpendError>>,
    status: Coalescer<DeviceId, Result<Seen, Failure>>,
    upload: Coalescer<Offer, Result<Settled, Failure>>,
    token: Coalescer<[u8; 32], Result<Option<DeviceRow>, Failure>>,
}

impl Queues {
    /// Starts the workers, which go when the last clone of this is gone.
    pub(super) fn start(
        store: &Store,
        intake: &Intake,
        clock: &Arc<dyn Clock>,
        (retire, room): (bool, usize),
    ) -> std::io::Result<Self> {
        let metrics = store.metrics_handle();
        let size = Size { workers: if store.is_shared() { WORKERS } else { 1 }, room, most: MOST };
        let (its, time) = (store.clone(), Arc::clone(clock));
        let reserve = Coalescer::start("reserve", size, &metrics, move |wants: &[Reserve]| {
            outcomes(its.reserve_together(wants, View { now: time.now(), retire }), wants.len())
        })?;
        let (its, time) = (store.clone(), Arc::clone(clock));
        let spend = Coalescer::start("spend", size, &metrics, move |spends: &[Spend]| {
            outcomes(its.spend_together(spends, super::whole_second(time.now())), spends.len())
        })?;
        let (its, time) = (store.clone(), Arc::clone(clock));
        let status = Coalescer::start("status", size, &metrics, move |owners: &[DeviceId]| {
            let now = time.now();
            let contents = its.contents(owners, status::draining_since(now));
            outcomes(contents.map(|all| all.into_iter().map(|one| Some((one, now))).collect()), owners.len())
        })?;
        let its = store.clone();
        // One connection looks up tokens: made-up ones take no other from those who have a real one.
        let alone = Size { workers: 1, room, most: MOST };
        let token = Coalescer::start("token", alone, &metrics, move |hashes: &[[u8; 32]]| {
            let devices = its.authenticate(hashes);
            outcomes(devices.map(|all| all.into_iter().map(Some).collect()), hashes.len())
        })?;
        let (its, time) = (intake.clone(), Arc::clone(clock));
        // One judges while another stores, whatever the database.
        let size = Size { workers: WORKERS, room, most: MOST_UPLOADS };
        let upload = Coalescer::start("upload", size, &metrics, move |offers: &[Offer]| {
            outcomes(its.together(offers, View { now: time.now(), retire }), offers.len())
        })?;
        Ok(Self { reserve, spend, status, upload, token })
    }
}

/// What each of a batch is answered. Where the database is away, it is so for all of them; where it has failed in another
/// way, each is done alone, so that one cannot spoil it for the others.
fn outcomes<T>(batch: Result<Vec<Option<T>>, StoreError>, size: usize) -> Vec<Option<Result<T, Failure>>> {
    match batch {
        Ok(done) => done.into_iter().map(|one| one.map(Ok)).collect(),
        Err(error) if error.transient => {
            let failure = Failure::from(error);
            (0..size).map(|_| Some(Err(Failure::new(failure.kind, failure.detail.clone())))).collect()
        }
        Err(error) => {
            tracing::error!(%error, size, "a batch failed; each of it is tried alone");
            (0..size).map(|_| None).collect()
        }
    }
}

impl Pool {
    /// Fulfils a wish, with others or alone.
    pub(super) async fn fulfil(&self, want: Reserve) -> Result<Result<ReserveResponse, ReserveError>, Failure> {
        match self.submitted(&self.queues.reserve, want).await? {
            Judged::Done(outcome) => outcome,
            Judged::Alone(want) => {
                let alone = self.block(move |pool, now| pool.store.reserve(&[want], pool.view(now))).await?;
                alone.into_iter().next().ok_or_else(nothing)
            }
        }
    }

    /// Spends a reservation, with others or alone.
    pub(super) async fn spend_one(&self, spend: Spend) -> Result<Result<Spent, SpendError>, Failure> {
        match self.submitted(&self.queues.spend, spend).await? {
            Judged::Done(outcome) => outcome,
            Judged::Alone(spend) => {
                let alone = self.block(move |pool, now| pool.store.spend(&[spend], super::whole_second(now))).await?;
                alone.into_iter().next().ok_or_else(nothing)
            }
        }
    }

    /// What a device's pool holds, looked at with others or alone.
    pub(super) async fn look(&self, owner: DeviceId) -> Result<Seen, Failure> {
        match self.submitted(&self.queues.status, owner).await? {
            Judged::Done(seen) => seen,
            Judged::Alone(owner) => {
                self.block(move |pool, now| Ok::<_, StoreError>((pool.contents(owner, now)?, now))).await
            }
        }
    }

    /// The device that a token belongs to, looked up with others or alone.
    pub(super) async fn look_up(&self, token_hash: [u8; 32]) -> Result<Option<DeviceRow>, Failure> {
        match self.submitted(&self.queues.token, token_hash).await? {
            Judged::Done(device) => device,
            Judged::Alone(hash) => {
                let found = self.block(move |pool, _| pool.store.authenticate(&[hash])).await?;
                found.into_iter().next().ok_or_else(nothing)
            }
        }
    }

    /// Takes an offer of KeyPackages in, with others or alone.
    pub(super) async fn take_in(&self, offer: Offer) -> Result<Settled, Failure> {
        if offer.changes_a_key() {
            return self.block(move |pool, now| pool.intake.alone(offer, pool.view(now))).await;
        }
        match self.submitted(&self.queues.upload, offer).await? {
            Judged::Done(settled) => settled,
            Judged::Alone(offer) => self.block(move |pool, now| pool.intake.alone(offer, pool.view(now))).await,
        }
    }

    async fn submitted<W, T>(&self, queue: &Coalescer<W, T>, want: W) -> Result<Judged<W, T>, Failure>
    where
        W: Send + 'static,
        T: Send + 'static,
    {
        queue.submit(want).await.map_err(|reason| match reason {
            NotTaken::Full => self.overloaded(),
            NotTaken::Stopping => Self::not_finished(),
        })
    }
}

pub(super) fn nothing() -> Failure {
    Failure::new(ProblemType::Internal, "The database answered nothing. Try again.")
}
