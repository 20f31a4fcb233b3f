//! Batchers for the frequent requests, which share statements: reserve, spend, status and upload.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use keypool_openapi::ReserveResponse;
use keypool_transparency::note::Note;
use keypool_validation::key_package::Rules;

use super::{policy::Policy, times::whole_second, upload::Uploader};
use crate::{
    batching::{Batch, Batcher, Size},
    config::Config,
    log::{Log, Receivable},
    problem::Failure,
    store::{
        DeviceId, PoolContents, ReservationError, Reserve, ReserveError, Reserved, Spend, Spent, Store, StoreError,
        TreeState, UploadLimits,
    },
    work::{Work, not_finished},
};

/// Workers per kind of request: one fills its batch while the other waits for the disk. SQLite has one writer.
const WORKERS: usize = 2;

/// The most requests in a batch. In a larger batch, the first requests would wait for the last.
const MOST: usize = 64;

/// The most uploads in a batch. Each has up to 100 KeyPackages.
const MOST_UPLOADS: usize = 8;

/// One batcher for each kind of request.
#[derive(Clone)]
pub(super) struct Batches {
    pub reserve: Batcher<Reserves>,
    pub spend: Batcher<Spends>,
    pub status: Batcher<Contents>,
    pub upload: Batcher<Uploader>,
}

impl Batches {
    /// Starts the workers. They end when the last clone is dropped.
    pub(super) fn start(
        (store, work): (&Store, &Work),
        config: &Config,
        policy: &Arc<Policy>,
        log: Option<&Arc<Log>>,
    ) -> anyhow::Result<Self> {
        let rules = Rules {
            ciphersuites: config.ciphersuites.clone(),
            max_lifetime: SignedDuration::try_from(config.max_lifetime)?,
            clock_tolerance: SignedDuration::try_from(config.clock_tolerance)?,
            credential_binding: config.credential_binding,
        };
        let limits = UploadLimits { capacity: config.pool_capacity, binds_keys: policy.binds_keys };
        let uploader = Uploader::new(store.clone(), rules, limits, Arc::clone(policy))?;
        let room = config.max_waiting_requests as usize;
        let size = Size { workers: if store.is_shared() { WORKERS } else { 1 }, room, most: MOST };
        Ok(Self {
            reserve: Batcher::start(
                Reserves { store: store.clone(), policy: Arc::clone(policy), log: log.cloned() },
                size,
                work,
            )?,
            spend: Batcher::start(Spends { store: store.clone(), log: log.cloned() }, size, work)?,
            status: Batcher::start(Contents { store: store.clone(), log: log.cloned() }, size, work)?,
            // One worker validates while the other stores, on both databases.
            upload: Batcher::start(uploader, Size { workers: WORKERS, room, most: MOST_UPLOADS }, work)?,
        })
    }
}

/// Reserve requests, which share a statement.
pub(super) struct Reserves {
    pub store: Store,
    pub policy: Arc<Policy>,
    pub log: Option<Arc<Log>>,
}

/// The receipts of answers that are committed, by their order. Where none can be signed, the answers go without.
pub(super) fn receipts(log: Option<&Arc<Log>>, wanted: &[Option<Receivable>], now: Timestamp) -> Vec<Option<String>> {
    let nothing = || wanted.iter().map(|_| None).collect();
    let Some(log) = log else { return nothing() };
    log.receipts(wanted, now).unwrap_or_else(|error| {
        tracing::error!(%error, "receipts could not be signed; the answers go without them");
        nothing()
    })
}

impl Reserves {
    fn with_receipts(
        &self,
        requests: &[Reserve],
        answers: Vec<Option<Result<Reserved, ReserveError>>>,
        now: Timestamp,
    ) -> Vec<Option<Result<ReserveResponse, ReserveError>>> {
        let wanted = |(request, answer): (&Reserve, &Option<Result<Reserved, ReserveError>>)| match answer {
            Some(Ok(reserved)) => Receivable::of_reserve(request, reserved, now),
            _ => Vec::new(),
        };
        let wanted: Vec<_> = requests.iter().zip(&answers).map(wanted).collect();
        let counts: Vec<_> = wanted.iter().map(Vec::len).collect();
        let wanted: Vec<_> = wanted.into_iter().flatten().collect();
        let mut signed = receipts(self.log.as_ref(), &wanted, now).into_iter();
        let mut with = |Reserved { mut answer, .. }: Reserved, count: usize| {
            for (reservation, receipt) in answer.reservations.iter_mut().zip(signed.by_ref().take(count)) {
                reservation.receipt = receipt;
            }
            answer
        };
        let with = |(answer, count): (Option<Result<Reserved, ReserveError>>, usize)| {
            answer.map(|one| one.map(|reserved| with(reserved, count)))
        };
        answers.into_iter().zip(counts).map(with).collect()
    }
}

impl Batch for Reserves {
    const NAME: &'static str = "reserve";
    type Request = Reserve;
    type Answer = Result<ReserveResponse, ReserveError>;

    fn together(&self, requests: &[Reserve], now: Timestamp) -> Result<Vec<Option<Self::Answer>>, StoreError> {
        let answers = self.store.reserve_batch(requests, self.policy.as_of(now))?;
        Ok(self.with_receipts(requests, answers, now))
    }

    fn alone(&self, request: Reserve, now: Timestamp) -> Result<Self::Answer, Failure> {
        let answer = self.store.reserve(&request, self.policy.as_of(now))?;
        let mut answers = self.with_receipts(std::slice::from_ref(&request), vec![Some(answer)], now);
        answers.pop().flatten().ok_or_else(not_finished)
    }
}

/// Spend requests, which share a statement.
pub(super) struct Spends {
    pub store: Store,
    pub log: Option<Arc<Log>>,
}

/// A spend with the receipt that it asked for.
type SpentWithReceipt = Result<(Spent, Option<String>), ReservationError>;

impl Spends {
    fn with_receipts(
        &self,
        spends: &[Spend],
        answers: Vec<Option<Result<Spent, ReservationError>>>,
        now: Timestamp,
    ) -> Vec<Option<SpentWithReceipt>> {
        let wanted = |(spend, answer): (&Spend, &Option<Result<Spent, ReservationError>>)| match answer {
            Some(Ok(spent)) => Receivable::of_spend(spend, spent),
            _ => None,
        };
        let wanted: Vec<_> = spends.iter().zip(&answers).map(wanted).collect();
        let receipts = receipts(self.log.as_ref(), &wanted, now);
        answers
            .into_iter()
            .zip(receipts)
            .map(|(answer, receipt)| answer.map(|one| one.map(|spent| (spent, receipt))))
            .collect()
    }
}

impl Batch for Spends {
    const NAME: &'static str = "spend";
    type Request = Spend;
    type Answer = SpentWithReceipt;

    fn together(&self, requests: &[Spend], now: Timestamp) -> Result<Vec<Option<Self::Answer>>, StoreError> {
        let answers = self.store.spend_batch(requests, whole_second(now))?;
        Ok(self.with_receipts(requests, answers, now))
    }

    fn alone(&self, request: Spend, now: Timestamp) -> Result<Self::Answer, Failure> {
        let answer = self.store.spend(&request, whole_second(now))?;
        let mut answers = self.with_receipts(std::slice::from_ref(&request), vec![Some(answer)], now);
        answers.pop().flatten().ok_or_else(not_finished)
    }
}

/// A user that has reserved half of a pool within this time is reported as draining it.
const DRAIN_SPAN: SignedDuration = SignedDuration::from_hours(1);

/// Returns the start of the period in which reservations count as draining.
pub(super) fn draining_since(now: Timestamp) -> Timestamp {
    now.saturating_sub(DRAIN_SPAN).unwrap_or(Timestamp::MIN)
}

/// Reads the contents of pools, several in one statement, and the newest checkpoint.
pub(super) struct Contents {
    pub store: Store,
    pub log: Option<Arc<Log>>,
}

/// What a status is made from.
#[derive(Clone)]
pub(super) struct Read {
    pub contents: Arc<PoolContents>,
    /// The newest tree of the log, and its checkpoint.
    pub head: Option<(TreeState, Note)>,
    /// When it was read.
    pub at: Timestamp,
}

impl Contents {
    fn read(&self, owners: &[DeviceId], at: Timestamp) -> Result<Vec<Read>, StoreError> {
        let pools = self.store.contents(owners, draining_since(at))?;
        let head = self.log.as_ref().map(|log| log.head()).transpose()?;
        Ok(pools.into_iter().map(|contents| Read { contents, head: head.clone(), at }).collect())
    }
}

impl Batch for Contents {
    const NAME: &'static str = "status";
    type Request = DeviceId;
    type Answer = Read;

    fn together(&self, owners: &[DeviceId], now: Timestamp) -> Result<Vec<Option<Read>>, StoreError> {
        Ok(self.read(owners, now)?.into_iter().map(Some).collect())
    }

    fn alone(&self, owner: DeviceId, now: Timestamp) -> Result<Read, Failure> {
        self.read(&[owner], now)?.pop().ok_or_else(not_finished)
    }
}
