//! Batches of the frequent requests: reserve, spend, status, upload, and the look-up of tokens.

use std::sync::Arc;

use jiff::Timestamp;
use keypool_openapi::{ProblemType, ReserveResponse};

use super::{
    Pool, status,
    upload::{PendingUpload, UploadResult, Uploader},
};
use crate::{
    batching::{Batched, Batcher, NotTaken, Size},
    clock::Clock,
    problem::Failure,
    store::{
        AsOf, DeviceId, DeviceRow, PoolContents, Reserve, ReserveError, Spend, SpendError, Spent, Store, StoreError,
    },
};

/// Workers per kind of request: one fills its batch while the other waits for the disk. SQLite has one writer.
const WORKERS: usize = 2;

/// Requests in a batch at most. In a larger batch, the first requests would wait for the last.
const MOST: usize = 64;

/// Uploads in a batch at most. Each has up to 100 KeyPackages.
const MOST_UPLOADS: usize = 8;

type Outcome<T, E> = Result<Result<T, E>, Failure>;

/// The contents of a pool, and when they were read.
type Seen = (Arc<PoolContents>, Timestamp);

/// One queue per kind of request.
#[derive(Clone)]
pub(super) struct Queues {
    reserve: Batcher<Reserve, Outcome<ReserveResponse, ReserveError>>,
    spend: Batcher<Spend, Outcome<Spent, SpendError>>,
    status: Batcher<DeviceId, Result<Seen, Failure>>,
    upload: Batcher<PendingUpload, Result<UploadResult, Failure>>,
    token: Batcher<[u8; 32], Result<Option<DeviceRow>, Failure>>,
}

impl Queues {
    /// Starts the workers. They end when the last clone is dropped.
    pub(super) fn start(
        store: &Store,
        uploader: &Uploader,
        clock: &Arc<dyn Clock>,
        (retire, room): (bool, usize),
    ) -> std::io::Result<Self> {
        let metrics = store.metrics_handle();
        let size = Size { workers: if store.is_shared() { WORKERS } else { 1 }, room, most: MOST };
        let (its, time) = (store.clone(), Arc::clone(clock));
        let reserve = Batcher::start("reserve", size, &metrics, move |wants: &[Reserve]| {
            outcomes(its.reserve_together(wants, AsOf { now: time.now(), retire }), wants.len())
        })?;
        let (its, time) = (store.clone(), Arc::clone(clock));
        let spend = Batcher::start("spend", size, &metrics, move |spends: &[Spend]| {
            outcomes(its.spend_together(spends, super::whole_second(time.now())), spends.len())
        })?;
        let (its, time) = (store.clone(), Arc::clone(clock));
        let status = Batcher::start("status", size, &metrics, move |owners: &[DeviceId]| {
            let now = time.now();
            let contents = its.contents(owners, status::draining_since(now));
            outcomes(contents.map(|all| all.into_iter().map(|one| Some((one, now))).collect()), owners.len())
        })?;
        let its = store.clone();
        // One connection looks up tokens, so that made-up tokens cannot occupy the others.
        let alone = Size { workers: 1, room, most: MOST };
        let token = Batcher::start("token", alone, &metrics, move |hashes: &[[u8; 32]]| {
            let devices = its.authenticate(hashes);
            outcomes(devices.map(|all| all.into_iter().map(Some).collect()), hashes.len())
        })?;
        let (its, time) = (uploader.clone(), Arc::clone(clock));
        // One worker validates while the other stores, on both databases.
        let size = Size { workers: WORKERS, room, most: MOST_UPLOADS };
        let upload = Batcher::start("upload", size, &metrics, move |pending: &[PendingUpload]| {
            outcomes(its.together(pending, AsOf { now: time.now(), retire }), pending.len())
        })?;
        Ok(Self { reserve, spend, status, upload, token })
    }
}

/// The answers of a batch. If the database is away, all requests of the batch fail; after any other error, each is tried alone, so
/// that one request cannot fail the others.
fn outcomes<T>(batch: Result<Vec<Option<T>>, StoreError>, size: usize) -> Vec<Option<Result<T, Failure>>> {
    match batch {
        Ok(done) => done.into_iter().map(|one| one.map(Ok)).collect(),
        Err(error) if error.transient => {
            let failure = Failure::from(error);
            (0..size).map(|_| Some(Err(Failure::new(failure.kind, failure.detail.clone())))).collect()
        }
        Err(error) => {
            tracing::error!(%error, size, "a batch failed; each of its requests is tried alone");
            (0..size).map(|_| None).collect()
        }
    }
}

impl Pool {
    /// Reserves, in a batch or alone.
    pub(super) async fn reserve_batched(
        &self,
        want: Reserve,
    ) -> Result<Result<ReserveResponse, ReserveError>, Failure> {
        match self.submitted(&self.queues.reserve, want).await? {
            Batched::Done(outcome) => outcome,
            Batched::Alone(want) => {
                let alone = self.block(move |pool, now| pool.store.reserve(&[want], pool.as_of(now))).await?;
                alone.into_iter().next().ok_or_else(nothing)
            }
        }
    }

    /// Spends a reservation, in a batch or alone.
    pub(super) async fn spend_batched(&self, spend: Spend) -> Result<Result<Spent, SpendError>, Failure> {
        match self.submitted(&self.queues.spend, spend).await? {
            Batched::Done(outcome) => outcome,
            Batched::Alone(spend) => {
                let alone = self.block(move |pool, now| pool.store.spend(&[spend], super::whole_second(now))).await?;
                alone.into_iter().next().ok_or_else(nothing)
            }
        }
    }

    /// The contents of a device's pool, read in a batch or alone.
    pub(super) async fn contents_batched(&self, owner: DeviceId) -> Result<Seen, Failure> {
        match self.submitted(&self.queues.status, owner).await? {
            Batched::Done(seen) => seen,
            Batched::Alone(owner) => {
                self.block(move |pool, now| Ok::<_, StoreError>((pool.contents(owner, now)?, now))).await
            }
        }
    }

    /// The device that a token belongs to, looked up in a batch or alone.
    pub(super) async fn device_of_token(&self, token_hash: [u8; 32]) -> Result<Option<DeviceRow>, Failure> {
        match self.submitted(&self.queues.token, token_hash).await? {
            Batched::Done(device) => device,
            Batched::Alone(hash) => {
                let found = self.block(move |pool, _| pool.store.authenticate(&[hash])).await?;
                found.into_iter().next().ok_or_else(nothing)
            }
        }
    }

    /// Validates and stores an upload, in a batch or alone.
    pub(super) async fn upload_batched(&self, upload: PendingUpload) -> Result<UploadResult, Failure> {
        if upload.changes_a_key() {
            return self.block(move |pool, now| pool.uploader.alone(upload, pool.as_of(now))).await;
        }
        match self.submitted(&self.queues.upload, upload).await? {
            Batched::Done(results) => results,
            Batched::Alone(upload) => self.block(move |pool, now| pool.uploader.alone(upload, pool.as_of(now))).await,
        }
    }

    async fn submitted<W, T>(&self, queue: &Batcher<W, T>, want: W) -> Result<Batched<W, T>, Failure>
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
