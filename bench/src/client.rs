//! Generating KeyPackages: in one transaction into the client's file, and in OpenMLS's in-memory storage.

use std::time::{Duration, Instant};

use anyhow::Result;
use keypool_bench::Maker;
use keypool_client::{
    CIPHERSUITE, Clock, DeviceIdentity, KeyPackagePool, KeyPackagePoolConfig, LocalStore, SystemClock,
};

use crate::{progress, report::Comparison};

const COUNTS: [usize; 2] = [32, 1_000];

pub(crate) fn measure(rounds: u32) -> Result<Vec<Comparison>> {
    let bar = progress::bar(u64::from(rounds) * COUNTS.len() as u64, "")?;
    let mut comparisons = Vec::new();
    for count in COUNTS {
        let what = format!("{count} KeyPackages, stored");
        bar.set_message(what.clone());
        let mut times = Vec::new();
        for round in 0..rounds {
            // The order changes, since the second one finds warmer caches.
            let time = if round % 2 == 0 {
                let file = in_file(count)?;
                (file, in_memory(count)?)
            } else {
                let memory = in_memory(count)?;
                (in_file(count)?, memory)
            };
            times.push(time);
            bar.inc(1);
        }
        comparisons.push(Comparison::of(what, &times));
    }
    bar.finish_and_clear();
    Ok(comparisons)
}

fn in_file(count: usize) -> Result<Duration> {
    let directory = tempfile::tempdir()?;
    let store = LocalStore::open(directory.path())?;
    let names = (&"alice".parse()?, &"laptop".parse()?);
    let identity = DeviceIdentity::create(&store, "http://localhost:8080", names, &[CIPHERSUITE])?;
    let config = KeyPackagePoolConfig { hard_cap: count, ..KeyPackagePoolConfig::default() };
    let pool = KeyPackagePool::new(&store, &config);
    let now = SystemClock.now();
    let started = Instant::now();
    pool.generate_and_update_pool(&identity.key_package_signer(CIPHERSUITE)?, (count, false), now, &|_| {})?;
    Ok(started.elapsed())
}

fn in_memory(count: usize) -> Result<Duration> {
    let maker = Maker::new("alice", CIPHERSUITE)?;
    let started = Instant::now();
    for _ in 0..count {
        maker.bundle()?;
    }
    Ok(started.elapsed())
}
