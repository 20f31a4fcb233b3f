//! Work on all cores.

use std::{
    num::NonZero,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use anyhow::{Result, anyhow};

/// Runs `work` for each number below `count`, on all cores, and returns the results in order.
pub(crate) fn on_all<T: Send>(count: usize, work: impl Fn(usize) -> Result<T> + Sync) -> Result<Vec<T>> {
    let next = AtomicUsize::new(0);
    let worker = || {
        let mut done = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return Ok::<_, anyhow::Error>(done);
            }
            done.push((number, work(number)?));
        }
    };
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let mut all = thread::scope(|scope| {
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(worker)).collect();
        let mut all = Vec::with_capacity(count);
        for worker in workers {
            all.extend(worker.join().map_err(|_| anyhow!("a thread panicked"))??);
        }
        Ok::<_, anyhow::Error>(all)
    })?;
    all.sort_by_key(|(number, _)| *number);
    Ok(all.into_iter().map(|(_, one)| one).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_done_once_and_in_order_and_a_failure_is_told() {
        assert_eq!(
            on_all(100, |number| Ok(number * 2)).unwrap(),
            (0..100).map(|number| number * 2).collect::<Vec<_>>()
        );
        let failed = on_all(100, |number| if number == 57 { Err(anyhow!("no 57")) } else { Ok(()) });
        assert_eq!(failed.unwrap_err().to_string(), "no 57");
    }
}
