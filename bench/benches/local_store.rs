//! Benchmarks of the client's file.

use anyhow::Result;
use criterion::{BatchSize, Criterion};
use keypool_client::{
    CIPHERSUITE, Clock, DeviceIdentity, KeyPackagePool, KeyPackagePoolConfig, LocalStore, SystemClock,
};
use tempfile::TempDir;

fn main() -> Result<()> {
    let mut criterion = Criterion::default().configure_from_args();
    store(&mut criterion);
    open(&mut criterion)?;
    criterion.final_summary();
    Ok(())
}

/// A new file, with a device's identity.
fn device() -> Result<(TempDir, LocalStore, DeviceIdentity)> {
    let directory = tempfile::tempdir()?;
    let store = LocalStore::open(directory.path())?;
    let names = (&"alice".parse()?, &"laptop".parse()?);
    let identity = DeviceIdentity::create(&store, "http://localhost:8080", names, &[CIPHERSUITE])?;
    Ok((directory, store, identity))
}

/// Generates 32 KeyPackages, and stores them with their keys in one transaction.
fn fill(store: &LocalStore, identity: &DeviceIdentity) -> Result<()> {
    let config = KeyPackagePoolConfig::default();
    let pool = KeyPackagePool::new(store, &config);
    let signer = identity.key_package_signer(CIPHERSUITE)?;
    pool.generate_and_update_pool(&signer, (32, false), SystemClock.now(), &|_| {})?;
    Ok(())
}

#[expect(clippy::expect_used, reason = "criterion's closures cannot fail otherwise")]
fn store(criterion: &mut Criterion) {
    criterion.bench_function("generate and store 32 KeyPackages in one transaction", |bencher| {
        bencher.iter_batched_ref(
            || device().expect("a new file"),
            |(_, store, identity)| fill(store, identity).expect("a full pool"),
            BatchSize::PerIteration,
        );
    });
}

/// Opens a file with a full pool, and closes it: one process has it open at a time.
#[expect(clippy::expect_used, reason = "criterion's closures cannot fail otherwise")]
fn open(criterion: &mut Criterion) -> Result<()> {
    let (directory, store, identity) = device()?;
    fill(&store, &identity)?;
    drop(store);
    criterion.bench_function("open and close a file with a full pool", |bencher| {
        bencher.iter(|| drop(LocalStore::open(directory.path()).expect("the file that was filled")));
    });
    Ok(())
}
