//! Batching: requests that wait at the same moment share a statement and a commit.
//!
//! A few worker threads take up to a bounded number of waiting requests, run them together, and answer each. There is no timer: a
//! single request starts at once. While a batch runs, the next one starts when as many requests wait as the running batch has:
//! many small batches would cost more than they save. A request that could not run in a batch goes back to its caller, which runs
//! it alone.

use std::{
    collections::VecDeque,
    fmt,
    panic::{self, AssertUnwindSafe},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Instant,
};

use tokio::sync::oneshot;

use crate::metrics::Metrics;

/// Bounds of a [`Batcher`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    /// Batches that run at the same time.
    pub workers: usize,
    /// Waiting requests at most.
    pub room: usize,
    /// Requests in a batch at most.
    pub most: usize,
}

/// The outcome of a request.
#[derive(Debug)]
pub(crate) enum Batched<W, T> {
    /// It ran in a batch.
    Done(T),
    /// It has to run alone.
    Alone(W),
}

/// Why a request did not run.
#[derive(Debug)]
pub(crate) enum NotTaken {
    /// Too many wait already.
    Full,
    /// The workers have ended: the server stops.
    Stopping,
}

struct Job<W, T> {
    want: W,
    since: Instant,
    answer: oneshot::Sender<Batched<W, T>>,
}

/// The queue and the workers of one kind of request.
#[derive(Debug)]
pub(crate) struct Batcher<W, T> {
    entrance: Arc<Entrance<W, T>>,
}

impl<W, T> Clone for Batcher<W, T> {
    fn clone(&self) -> Self {
        Self { entrance: Arc::clone(&self.entrance) }
    }
}

impl<W: Send + 'static, T: Send + 'static> Batcher<W, T> {
    /// Starts the workers. They end when the last clone is dropped. `together` answers each request in order, `None` for one that
    /// has to run alone.
    ///
    /// # Errors
    /// When the system cannot start a thread.
    pub(crate) fn start(
        name: &'static str,
        size: Size,
        metrics: &Arc<Metrics>,
        together: impl Fn(&[W]) -> Vec<Option<T>> + Send + Clone + 'static,
    ) -> std::io::Result<Self> {
        let queue = Arc::new(Queue::new(size));
        let entrance = Arc::new(Entrance(Arc::clone(&queue)));
        for _ in 0..size.workers {
            let (queue, together, metrics) = (Arc::clone(&queue), together.clone(), Arc::clone(metrics));
            thread::Builder::new().name(name.to_owned()).spawn(move || {
                let mut done = 0;
                while let Some(batch) = queue.next(done) {
                    done = batch.len();
                    for job in &batch {
                        metrics.waited_in_batch(name, job.since.elapsed());
                    }
                    metrics.batch(name, done);
                    // A panic fails the requests of this batch alone.
                    if panic::catch_unwind(AssertUnwindSafe(|| work(batch, &together))).is_err() {
                        tracing::error!(name, "a worker panicked; the requests of its batch are not answered");
                    }
                }
            })?;
        }
        Ok(Self { entrance })
    }

    /// Runs a request in the next batch.
    pub(crate) async fn submit(&self, want: W) -> Result<Batched<W, T>, NotTaken> {
        let (answer, answered) = oneshot::channel();
        self.entrance.0.enter(Job { want, since: Instant::now(), answer })?;
        answered.await.map_err(|_| NotTaken::Stopping)
    }
}

/// Closes the queue when the last clone is dropped.
struct Entrance<W, T>(Arc<Queue<W, T>>);

impl<W, T> fmt::Debug for Entrance<W, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entrance").field("size", &self.0.size).finish_non_exhaustive()
    }
}

impl<W, T> Drop for Entrance<W, T> {
    fn drop(&mut self) {
        self.0.line().closed = true;
        self.0.ripe.notify_all();
    }
}

struct Queue<W, T> {
    line: Mutex<Line<W, T>>,
    /// Signalled when a batch may start.
    ripe: Condvar,
    size: Size,
}

struct Line<W, T> {
    jobs: VecDeque<Job<W, T>>,
    /// Requests in running batches.
    under_way: usize,
    /// Workers that wait. A signal to a busy worker would be a needless system call.
    idle: usize,
    closed: bool,
}

impl<W, T> Queue<W, T> {
    fn new(size: Size) -> Self {
        let line = Line { jobs: VecDeque::new(), under_way: 0, idle: 0, closed: false };
        Self { line: Mutex::new(line), ripe: Condvar::new(), size }
    }

    fn line(&self) -> MutexGuard<'_, Line<W, T>> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a batch may start.
    fn is_ripe(&self, line: &Line<W, T>) -> bool {
        let waiting = line.jobs.len();
        waiting > 0 && waiting >= line.under_way.min(self.size.most)
    }

    fn enter(&self, job: Job<W, T>) -> Result<(), NotTaken> {
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

    /// Blocks until a batch is ready; `done` is the size of the worker's last batch. `None` once the queue is closed: the worker
    /// that finishes last takes the remaining requests.
    fn next(&self, done: usize) -> Option<Vec<Job<W, T>>> {
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

fn work<W, T>(batch: Vec<Job<W, T>>, together: impl Fn(&[W]) -> Vec<Option<T>>) {
    let (wants, answers): (Vec<_>, Vec<_>) = batch.into_iter().map(|job| (job.want, job.answer)).unzip();
    let mut outcomes = together(&wants).into_iter();
    for (want, answer) in wants.into_iter().zip(answers) {
        let outcome = outcomes.next().flatten().map_or(Batched::Alone(want), Batched::Done);
        // The caller may have gone.
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

    use super::*;

    /// A batch that has begun. It ends when this is dropped.
    struct Held {
        wants: Vec<u32>,
        _end: mpsc::Sender<()>,
    }

    /// A coalescer whose batches say that they begin. It multiplies even numbers by ten, together.
    fn held(workers: usize, room: usize) -> (Batcher<u32, u32>, mpsc::Receiver<Held>) {
        let (begun, begins) = mpsc::channel();
        let together = move |wants: &[u32]| {
            let (end, ended) = mpsc::channel();
            begun.send(Held { wants: wants.to_vec(), _end: end }).unwrap();
            let _ = ended.recv();
            wants.iter().map(|want| want.is_multiple_of(2).then_some(want * 10)).collect()
        };
        let metrics = Arc::new(Metrics::new().unwrap());
        (Batcher::start("test", Size { workers, room, most: 64 }, &metrics, together).unwrap(), begins)
    }

    type Submitted<'c> = Pin<Box<dyn Future<Output = Result<Batched<u32, u32>, NotTaken>> + 'c>>;

    /// It waits in the queue when this returns, or is with a worker.
    fn submit(coalescer: &Batcher<u32, u32>, want: u32) -> Submitted<'_> {
        let mut submitted: Submitted<'_> = Box::pin(coalescer.submit(want));
        assert!(submitted.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        submitted
    }

    fn wants(begins: &mpsc::Receiver<Held>) -> (Vec<u32>, Held) {
        let held = begins.recv().unwrap();
        (held.wants.clone(), held)
    }

    #[tokio::test]
    async fn what_waits_is_done_together_and_each_has_its_own_answer() {
        let (coalescer, begins) = held(1, 100);
        let first = submit(&coalescer, 0);
        let (begun, batch) = wants(&begins);
        assert_eq!(begun, [0], "what comes alone does not wait");
        let others: Vec<_> = (1..=80).map(|want| (want, submit(&coalescer, want))).collect();
        drop(batch);
        assert!(matches!(first.await, Ok(Batched::Done(0))));
        let (begun, batch) = wants(&begins);
        assert_eq!(begun, (1..=64).collect::<Vec<_>>(), "as many as may, in their order");
        drop(batch);
        assert_eq!(wants(&begins).0, (65..=80).collect::<Vec<_>>());
        for (want, other) in others {
            match other.await.unwrap() {
                Batched::Done(done) => assert_eq!(done, want * 10),
                Batched::Alone(back) => assert_eq!((back, want % 2), (want, 1)),
            }
        }
    }

    #[test]
    fn a_batch_begins_beside_others_when_as_many_wait_as_are_in_them() {
        let queue = Queue::new(Size { workers: 3, room: 1_000, most: 8 });
        let come = |count| {
            for _ in 0..count {
                let (answer, _) = oneshot::channel::<Batched<(), ()>>();
                queue.enter(Job { want: (), since: Instant::now(), answer }).unwrap();
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
        let (coalescer, begins) = held(1, 1);
        let first = submit(&coalescer, 0);
        let (_, batch) = wants(&begins);
        let second = submit(&coalescer, 2);
        assert!(matches!(coalescer.submit(4).await, Err(NotTaken::Full)));
        drop(batch);
        assert_eq!(wants(&begins).0, [2]);
        for submitted in [first, second] {
            assert!(matches!(submitted.await, Ok(Batched::Done(_))));
        }
    }

    #[tokio::test]
    async fn when_nobody_can_come_any_more_what_waits_is_done_and_the_workers_end() {
        let (coalescer, begins) = held(2, 100);
        let another = coalescer.clone();
        drop(submit(&coalescer, 0));
        let (_, one) = wants(&begins);
        drop(submit(&coalescer, 1));
        let (_, two) = wants(&begins);
        drop(submit(&coalescer, 2));
        drop(coalescer);
        drop(submit(&another, 3));
        drop(another);
        drop((one, two));
        // There is no more when both are gone.
        let rest: Vec<_> = begins.into_iter().map(|held| held.wants.clone()).collect();
        assert_eq!(rest, [[2, 3]]);
    }

    #[tokio::test]
    async fn a_batch_that_panics_leaves_nobody_waiting() {
        let metrics = Arc::new(Metrics::new().unwrap());
        let together = |_: &[u32]| -> Vec<Option<u32>> { panic!("on purpose") };
        let coalescer = Batcher::start("test", Size { workers: 1, room: 10, most: 64 }, &metrics, together).unwrap();
        for _ in 0..2 {
            assert!(matches!(coalescer.submit(1).await, Err(NotTaken::Stopping)));
        }
    }
}
