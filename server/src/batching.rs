//! Batching: requests that wait at the same moment share a statement and a commit.
//!
//! A few worker threads take up to a bounded number of waiting requests, run them together, and answer each. There is
//! no timer: a single request starts at once. While a batch runs, the next one starts when as many requests wait as the
//! running batch has: many small batches would cost more than they save. A request that could not run in a batch runs
//! alone.

use std::{
    collections::VecDeque,
    panic::{self, AssertUnwindSafe},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Instant,
};

use jiff::Timestamp;
use tokio::sync::oneshot;

use crate::{
    problem::Failure,
    store::StoreError,
    work::{Work, not_finished},
};

/// Bounds of a [`Batcher`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    /// Batches that run at the same time.
    pub workers: usize,
    /// The most waiting requests.
    pub room: usize,
    /// The most requests in a batch.
    pub most: usize,
}

/// Requests of one kind, which can share a statement.
pub(crate) trait Batch: Send + Sync + 'static {
    /// The kind's name, for threads and metrics.
    const NAME: &'static str;
    type Request: Send + 'static;
    type Answer: Send + 'static;

    /// Answers each request, in order; `None` for a request that must run alone.
    ///
    /// # Errors
    /// When the database fails. Nothing has been done then.
    fn together(&self, requests: &[Self::Request], now: Timestamp) -> Result<Vec<Option<Self::Answer>>, StoreError>;

    /// Answers one request, in a transaction of its own.
    ///
    /// # Errors
    /// When the database fails, or the request is refused.
    fn alone(&self, request: Self::Request, now: Timestamp) -> Result<Self::Answer, Failure>;
}

/// The outcome of a request in its batch.
enum Batched<B: Batch> {
    Done(Result<B::Answer, Failure>),
    /// The request must run alone.
    Alone(B::Request),
}

/// The reason why a request was not queued.
#[derive(Debug)]
enum NotTaken {
    /// Too many requests are waiting.
    Full,
    /// The workers have ended because the server is stopping.
    Stopping,
}

struct Job<B: Batch> {
    request: B::Request,
    since: Instant,
    answer: oneshot::Sender<Batched<B>>,
}

/// The queue and the workers of one kind of request. Cheap to clone.
pub(crate) struct Batcher<B: Batch> {
    entrance: Arc<Entrance<B>>,
    batch: Arc<B>,
    work: Work,
}

impl<B: Batch> Clone for Batcher<B> {
    fn clone(&self) -> Self {
        Self { entrance: Arc::clone(&self.entrance), batch: Arc::clone(&self.batch), work: self.work.clone() }
    }
}

impl<B: Batch> Batcher<B> {
    /// Starts the workers. They end when the last clone is dropped.
    ///
    /// # Errors
    /// When the system cannot start a thread.
    pub(crate) fn start(batch: B, size: Size, work: &Work) -> std::io::Result<Self> {
        let (queue, batch) = (Arc::new(Queue::new(size)), Arc::new(batch));
        let entrance = Arc::new(Entrance(Arc::clone(&queue)));
        for _ in 0..size.workers {
            let (queue, batch, work) = (Arc::clone(&queue), Arc::clone(&batch), work.clone());
            thread::Builder::new().name(B::NAME.to_owned()).spawn(move || {
                let (mut done, metrics) = (0, work.metrics());
                while let Some(jobs) = queue.next(done) {
                    done = jobs.len();
                    for job in &jobs {
                        metrics.waited_in_batch(B::NAME, job.since.elapsed());
                    }
                    metrics.batch(B::NAME, done);
                    // A panic fails the requests of this batch alone.
                    if panic::catch_unwind(AssertUnwindSafe(|| answer(jobs, &*batch, work.now()))).is_err() {
                        tracing::error!(
                            name = B::NAME,
                            "a worker panicked; the requests of its batch are not answered"
                        );
                    }
                }
            })?;
        }
        Ok(Self { entrance, batch, work: work.clone() })
    }

    /// Runs a request in the next batch, or alone if it cannot run in a batch.
    ///
    /// # Errors
    /// When too many requests wait, the server stops, or the request fails.
    pub(crate) async fn run(&self, request: B::Request) -> Result<B::Answer, Failure> {
        match self.submit(request).await {
            Ok(Batched::Done(answer)) => answer,
            Ok(Batched::Alone(request)) => self.run_alone(request).await,
            Err(NotTaken::Full) => Err(self.work.overloaded()),
            Err(NotTaken::Stopping) => Err(not_finished()),
        }
    }

    /// Runs a request alone, without waiting for a batch.
    ///
    /// # Errors
    /// When too many requests wait, or the request fails.
    pub(crate) async fn run_alone(&self, request: B::Request) -> Result<B::Answer, Failure> {
        let batch = Arc::clone(&self.batch);
        self.work.run(move |now| batch.alone(request, now)).await
    }

    async fn submit(&self, request: B::Request) -> Result<Batched<B>, NotTaken> {
        let (answer, answered) = oneshot::channel();
        self.entrance.0.enter(Job { request, since: Instant::now(), answer })?;
        answered.await.map_err(|_| NotTaken::Stopping)
    }
}

/// Closes the queue when the last clone is dropped.
struct Entrance<B: Batch>(Arc<Queue<B>>);

impl<B: Batch> Drop for Entrance<B> {
    fn drop(&mut self) {
        self.0.line().closed = true;
        self.0.ripe.notify_all();
    }
}

struct Queue<B: Batch> {
    line: Mutex<Line<B>>,
    /// Signalled when a batch may start.
    ripe: Condvar,
    size: Size,
}

struct Line<B: Batch> {
    jobs: VecDeque<Job<B>>,
    /// Requests in running batches.
    under_way: usize,
    /// Workers that wait. A signal to a busy worker would be a needless system call.
    idle: usize,
    closed: bool,
}

impl<B: Batch> Queue<B> {
    fn new(size: Size) -> Self {
        let line = Line { jobs: VecDeque::new(), under_way: 0, idle: 0, closed: false };
        Self { line: Mutex::new(line), ripe: Condvar::new(), size }
    }

    fn line(&self) -> MutexGuard<'_, Line<B>> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a batch may start.
    fn is_ripe(&self, line: &Line<B>) -> bool {
        let waiting = line.jobs.len();
        waiting > 0 && waiting >= line.under_way.min(self.size.most)
    }

    fn enter(&self, job: Job<B>) -> Result<(), NotTaken> {
        let mut line = self.line();
        if line.jobs.len() >= self.size.room {
            return Err(NotTaken::Full);
        }
        line.jobs.push_back(job);
        if line.idle > 0 && self.is_ripe(&line) {
            self.ripe.notify_one();
        }
        Ok(())
    }

    /// Blocks until a batch is ready; `done` is the size of the worker's last batch. `None` once the queue is closed:
    /// the worker that finishes last takes the remaining requests.
    fn next(&self, done: usize) -> Option<Vec<Job<B>>> {
        let mut line = self.line();
        line.under_way -= done;
        while !self.is_ripe(&line) {
            if line.closed {
                return None;
            }
            line.idle += 1;
            line = self.ripe.wait(line).unwrap_or_else(PoisonError::into_inner);
            line.idle -= 1;
        }
        let size = line.jobs.len().min(self.size.most);
        let batch = line.jobs.drain(..size).collect();
        line.under_way += size;
        Some(batch)
    }
}

/// Answers the requests of a batch. If the database is away, all of them fail; after any other error, each runs alone,
/// so that one request cannot fail the others.
fn answer<B: Batch>(jobs: Vec<Job<B>>, batch: &B, now: Timestamp) {
    let size = jobs.len();
    let (requests, answers): (Vec<_>, Vec<_>) = jobs.into_iter().map(|job| (job.request, job.answer)).unzip();
    let mut outcomes = match batch.together(&requests, now) {
        Ok(outcomes) => outcomes.into_iter().map(|one| one.map(Ok)).collect(),
        Err(error) if error.transient => {
            let failure = Failure::from(error);
            (0..size).map(|_| Some(Err(Failure::new(failure.kind, failure.detail.clone())))).collect()
        }
        Err(error) => {
            tracing::error!(%error, size, "a batch failed; each of its requests runs alone");
            Vec::new()
        }
    }
    .into_iter();
    for (request, answer) in requests.into_iter().zip(answers) {
        let outcome = outcomes.next().flatten().map_or(Batched::Alone(request), Batched::Done);
        // The caller may have disconnected.
        let _ = answer.send(outcome);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::Future,
        pin::Pin,
        sync::mpsc,
        task::{Context, Waker},
    };

    use keypool_openapi::ProblemType;

    use super::*;
    use crate::{clock::SystemClock, metrics::Metrics};

    /// A batch that has begun. It ends when this value is dropped.
    struct Held {
        requests: Vec<u32>,
        _end: mpsc::Sender<()>,
    }

    /// Reports each batch when it begins, and ends it when the test says so. In a batch, even numbers are multiplied by
    /// ten; alone, odd numbers by a hundred.
    struct Told(mpsc::Sender<Held>);

    /// A batch with this request panics.
    const PANICS: u32 = 1_000;

    /// A batch with this request fails, and so does the request alone.
    const FAILS: u32 = 1_001;

    /// A batch with this request finds the database away.
    const FINDS_NO_DATABASE: u32 = 1_002;

    impl Batch for Told {
        const NAME: &'static str = "test";
        type Request = u32;
        type Answer = u32;

        fn together(&self, requests: &[u32], _: Timestamp) -> Result<Vec<Option<u32>>, StoreError> {
            assert!(!requests.contains(&PANICS), "on purpose");
            let (end, ended) = mpsc::channel();
            self.0.send(Held { requests: requests.to_vec(), _end: end }).unwrap();
            let _ = ended.recv();
            if requests.contains(&FINDS_NO_DATABASE) {
                return Err(StoreError::transient(anyhow::anyhow!("away")));
            } else if requests.contains(&FAILS) {
                return Err(StoreError::fatal(anyhow::anyhow!("a fault")));
            }
            Ok(requests.iter().map(|one| one.is_multiple_of(2).then_some(one * 10)).collect())
        }

        fn alone(&self, request: u32, _: Timestamp) -> Result<u32, Failure> {
            if request == FAILS { Err(StoreError::fatal(anyhow::anyhow!("a fault")).into()) } else { Ok(request * 100) }
        }
    }

    fn work() -> Work {
        Work::new(Arc::new(SystemClock), Arc::new(Metrics::new().unwrap()), 100)
    }

    fn held(workers: usize, room: usize) -> (Batcher<Told>, mpsc::Receiver<Held>) {
        let (begun, begins) = mpsc::channel();
        (Batcher::start(Told(begun), Size { workers, room, most: 64 }, &work()).unwrap(), begins)
    }

    type Running<'c> = Pin<Box<dyn Future<Output = Result<u32, Failure>> + 'c>>;

    /// When this returns, the request waits in the queue or runs in a worker.
    fn run(batcher: &Batcher<Told>, request: u32) -> Running<'_> {
        let mut running: Running<'_> = Box::pin(batcher.run(request));
        assert!(running.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        running
    }

    fn requests(begins: &mpsc::Receiver<Held>) -> (Vec<u32>, Held) {
        let held = begins.recv().unwrap();
        (held.requests.clone(), held)
    }

    #[tokio::test]
    async fn what_waits_is_done_together_and_each_has_its_own_answer() {
        let (batcher, begins) = held(1, 100);
        let first = run(&batcher, 0);
        let (begun, batch) = requests(&begins);
        assert_eq!(begun, [0], "what comes alone does not wait");
        let others: Vec<_> = (1..=80).map(|one| (one, run(&batcher, one))).collect();
        drop(batch);
        assert_eq!(first.await.unwrap(), 0);
        let (begun, batch) = requests(&begins);
        assert_eq!(begun, (1..=64).collect::<Vec<_>>(), "as many as may, in their order");
        drop(batch);
        assert_eq!(requests(&begins).0, (65..=80).collect::<Vec<_>>());
        for (one, other) in others {
            assert_eq!(other.await.unwrap(), one * if one.is_multiple_of(2) { 10 } else { 100 });
        }
    }

    #[test]
    fn a_batch_begins_beside_others_when_as_many_wait_as_are_in_them() {
        let queue = Queue::<Told>::new(Size { workers: 3, room: 1_000, most: 8 });
        let come = |count| {
            for _ in 0..count {
                let (answer, _) = oneshot::channel();
                queue.enter(Job { request: 0, since: Instant::now(), answer }).unwrap();
            }
            queue.is_ripe(&queue.line())
        };
        let next = |done| queue.next(done).unwrap().len();
        assert!(!come(0), "nobody is there");
        assert!(come(1), "one alone waits for nobody");
        assert_eq!(next(0), 1);
        assert!(come(1));
        assert_eq!(next(0), 1);
        assert!(!come(1), "one, beside two");
        assert!(come(2));
        assert_eq!(next(1), 3, "beside one");
        assert!(!come(3), "three, beside one and three");
        assert_eq!(next(3), 3, "beside one");
        assert!(come(20), "more than any batch has");
        assert_eq!((next(1), next(0)), (8, 8), "beside three, and then eleven");
        assert!(!come(3), "seven, beside three and twice eight");
        assert!(come(1), "as many as a batch can have");
    }

    #[tokio::test]
    async fn what_finds_no_room_is_told_at_once() {
        let (batcher, begins) = held(1, 1);
        let first = run(&batcher, 0);
        let (_, batch) = requests(&begins);
        let second = run(&batcher, 2);
        assert_eq!(batcher.run(4).await.unwrap_err().kind, ProblemType::Unavailable);
        drop(batch);
        assert_eq!(requests(&begins).0, [2]);
        for (running, answer) in [(first, 0), (second, 20)] {
            assert_eq!(running.await.unwrap(), answer);
        }
    }

    #[tokio::test]
    async fn when_nobody_can_come_any_more_what_waits_is_done_and_the_workers_end() {
        let (batcher, begins) = held(2, 100);
        let another = batcher.clone();
        drop(run(&batcher, 0));
        let (_, one) = requests(&begins);
        drop(run(&batcher, 1));
        let (_, two) = requests(&begins);
        drop(run(&batcher, 2));
        drop(batcher);
        drop(run(&another, 3));
        drop(another);
        drop((one, two));
        // The workers have ended once both are dropped, so no further batch begins.
        let rest: Vec<_> = begins.into_iter().map(|held| held.requests.clone()).collect();
        assert_eq!(rest, [[2, 3]]);
    }

    #[tokio::test]
    async fn a_batch_that_panics_leaves_nobody_waiting() {
        let (batcher, _begins) = held(1, 10);
        for _ in 0..2 {
            assert_eq!(batcher.run(PANICS).await.unwrap_err().kind, ProblemType::Unavailable);
        }
    }

    #[tokio::test]
    async fn a_request_that_fails_does_not_fail_the_others_unless_the_database_is_away() {
        for (bad, others) in [(FAILS, Ok(200)), (FINDS_NO_DATABASE, Err(ProblemType::Unavailable))] {
            let (batcher, begins) = held(1, 10);
            let first = run(&batcher, 0);
            let (_, batch) = requests(&begins);
            let (other, failing) = (run(&batcher, 2), run(&batcher, bad));
            drop(batch);
            assert_eq!(requests(&begins).0, [2, bad]);
            assert_eq!(first.await.unwrap(), 0);
            assert!(failing.await.is_err());
            assert_eq!(other.await.map_err(|failure| failure.kind), others);
        }
    }
}
