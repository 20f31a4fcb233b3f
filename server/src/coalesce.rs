//! Requests that wait at the same moment share a statement and a commit.
//!
//! A few workers, each on a thread of its own, take what is waiting, as much as there is up to a bound, do it together, and
//! answer each. There is no timer: what comes alone is done alone, at once. What could not be done together, for whatever
//! reason, goes back to who asked, to be done alone.

use std::{
    panic::{self, AssertUnwindSafe},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Instant,
};

use tokio::sync::{mpsc, oneshot};

use crate::metrics::Metrics;

/// How much a [`Coalescer`] does at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    /// Batches that are done at the same time.
    pub workers: usize,
    /// Requests that wait at most.
    pub room: usize,
    /// Requests in a batch at most.
    pub most: usize,
}

/// What became of a request.
#[derive(Debug)]
pub(crate) enum Judged<W, T> {
    /// It is done.
    Done(T),
    /// It could not be done with others.
    Alone(W),
}

/// Why a request was not taken.
#[derive(Debug)]
pub(crate) enum NotTaken {
    /// Too many wait already.
    Full,
    /// The workers are gone: the server stops.
    Stopping,
}

struct Job<W, T> {
    want: W,
    since: Instant,
    answer: oneshot::Sender<Judged<W, T>>,
}

/// Where requests of one kind wait for its workers.
#[derive(Debug)]
pub(crate) struct Coalescer<W, T> {
    waiting: mpsc::Sender<Job<W, T>>,
}

impl<W, T> Clone for Coalescer<W, T> {
    fn clone(&self) -> Self {
        Self { waiting: self.waiting.clone() }
    }
}

impl<W: Send + 'static, T: Send + 'static> Coalescer<W, T> {
    /// Starts the workers, which end when the last clone of this is gone. `together` answers for each of its wants, in
    /// order: `None` where it has to be done alone.
    ///
    /// # Errors
    /// When no thread can be had.
    pub(crate) fn start(
        name: &'static str,
        size: Size,
        metrics: &Arc<Metrics>,
        together: impl Fn(&[W]) -> Vec<Option<T>> + Send + Clone + 'static,
    ) -> std::io::Result<Self> {
        let (waiting, jobs) = mpsc::channel(size.room);
        let jobs = Arc::new(Mutex::new(jobs));
        for _ in 0..size.workers {
            let (jobs, together, metrics) = (Arc::clone(&jobs), together.clone(), Arc::clone(metrics));
            thread::Builder::new().name(name.to_owned()).spawn(move || {
                while let Some(batch) = next(&jobs, size.most) {
                    for job in &batch {
                        metrics.coalesced(name, job.since.elapsed());
                    }
                    metrics.batch(name, batch.len());
                    // A fault costs those whom it meets, and not everybody who comes after them.
                    if panic::catch_unwind(AssertUnwindSafe(|| work(batch, &together))).is_err() {
                        tracing::error!(name, "a worker panicked; what it was at is not answered");
                    }
                }
            })?;
        }
        Ok(Self { waiting })
    }

    /// Has it done, together with what else waits.
    pub(crate) async fn submit(&self, want: W) -> Result<Judged<W, T>, NotTaken> {
        let (answer, answered) = oneshot::channel();
        self.waiting.try_send(Job { want, since: Instant::now(), answer }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => NotTaken::Full,
            mpsc::error::TrySendError::Closed(_) => NotTaken::Stopping,
        })?;
        answered.await.map_err(|_| NotTaken::Stopping)
    }
}

/// Waits for something, and takes what else is there.
fn next<W, T>(jobs: &Mutex<mpsc::Receiver<Job<W, T>>>, most: usize) -> Option<Vec<Job<W, T>>> {
    // Held while nothing is there: the other workers would find nothing either.
    let mut jobs = jobs.lock().unwrap_or_else(PoisonError::into_inner);
    let mut batch = vec![jobs.blocking_recv()?];
    while batch.len() < most
        && let Ok(job) = jobs.try_recv()
    {
        batch.push(job);
    }
    Some(batch)
}

fn work<W, T>(batch: Vec<Job<W, T>>, together: impl Fn(&[W]) -> Vec<Option<T>>) {
    let (wants, answers): (Vec<_>, Vec<_>) = batch.into_iter().map(|job| (job.want, job.answer)).unzip();
    let mut outcomes = together(&wants).into_iter();
    for (want, answer) in wants.into_iter().zip(answers) {
        let judged = outcomes.next().flatten().map_or(Judged::Alone(want), Judged::Done);
        // Who asked may be gone.
        let _ = answer.send(judged);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc as std_mpsc;

    use super::*;

    /// A coalescer of one worker that says what it begins, and goes on when it is let.
    type Held = (Coalescer<u32, u32>, std_mpsc::Receiver<Vec<u32>>, std_mpsc::Sender<()>);

    fn held(room: usize) -> Held {
        let ((begun, begins), (go, gone)) = (std_mpsc::channel(), std_mpsc::channel::<()>());
        let gone = Arc::new(Mutex::new(gone));
        let together = move |wants: &[u32]| {
            begun.send(wants.to_vec()).unwrap();
            let _ = gone.lock().unwrap().recv();
            wants.iter().map(|want| want.is_multiple_of(2).then_some(want * 10)).collect()
        };
        let metrics = Arc::new(Metrics::new().unwrap());
        (Coalescer::start("test", Size { workers: 1, room, most: 64 }, &metrics, together).unwrap(), begins, go)
    }

    fn submit(
        coalescer: &Coalescer<u32, u32>,
        want: u32,
    ) -> tokio::task::JoinHandle<Result<Judged<u32, u32>, NotTaken>> {
        let coalescer = coalescer.clone();
        tokio::spawn(async move { coalescer.submit(want).await })
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_waits_is_done_together_and_each_has_its_own_answer() {
        let (coalescer, begins, go) = held(100);
        let first = submit(&coalescer, 0);
        assert_eq!(begins.recv().unwrap(), [0], "what comes alone does not wait");
        let mut others = Vec::new();
        for want in 1..=80 {
            others.push(submit(&coalescer, want));
            while coalescer.waiting.max_capacity() - coalescer.waiting.capacity() < want as usize {
                tokio::task::yield_now().await;
            }
        }
        go.send(()).unwrap();
        assert!(matches!(first.await.unwrap(), Ok(Judged::Done(0))));
        assert_eq!(begins.recv().unwrap(), (1..=64).collect::<Vec<_>>(), "as many as may, in their order");
        go.send(()).unwrap();
        assert_eq!(begins.recv().unwrap(), (65..=80).collect::<Vec<_>>());
        go.send(()).unwrap();
        for (want, other) in (1..=80).zip(others) {
            match other.await.unwrap().unwrap() {
                Judged::Done(done) => assert_eq!(done, want * 10),
                Judged::Alone(back) => assert_eq!((back, want % 2), (want, 1)),
            }
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_finds_no_room_is_told_at_once() {
        let (coalescer, begins, go) = held(1);
        let first = submit(&coalescer, 0);
        begins.recv().unwrap();
        let second = submit(&coalescer, 2);
        while coalescer.waiting.capacity() > 0 {
            tokio::task::yield_now().await;
        }
        assert!(matches!(coalescer.submit(4).await, Err(NotTaken::Full)));
        go.send(()).unwrap();
        go.send(()).unwrap();
        for job in [first, second] {
            assert!(matches!(job.await.unwrap(), Ok(Judged::Done(_))));
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_batch_that_panics_leaves_nobody_waiting() {
        let metrics = Arc::new(Metrics::new().unwrap());
        let together = |_: &[u32]| -> Vec<Option<u32>> { panic!("on purpose") };
        let coalescer = Coalescer::start("test", Size { workers: 1, room: 10, most: 64 }, &metrics, together).unwrap();
        for _ in 0..2 {
            assert!(matches!(coalescer.submit(1).await, Err(NotTaken::Stopping)));
        }
    }
}
