//! Benchmarks of the server's work on an uploaded KeyPackage, without the database.

use anyhow::Result;
use criterion::{BatchSize, Criterion, Throughput};
use keypool_bench::{Maker, Validator};
use keypool_client::CIPHERSUITE;
use keypool_server::config::Config;
use openmls::prelude::Ciphersuite;
use openmls_rust_crypto::RustCrypto;

fn main() -> Result<()> {
    let mut criterion = Criterion::default().configure_from_args();
    validate(&mut criterion)?;
    keypackage_ref(&mut criterion)?;
    criterion.final_summary();
    Ok(())
}

/// Parses a KeyPackage and checks it, with both signatures, for each ciphersuite that the server accepts.
fn validate(criterion: &mut Criterion) -> Result<()> {
    let mut group = criterion.benchmark_group("parse and validate a KeyPackage");
    group.throughput(Throughput::Elements(1));
    let validator = Validator::new()?;
    for number in Config::default().ciphersuites {
        let suite = Ciphersuite::try_from(number)?;
        let message = Maker::new("alice", suite)?.message()?;
        // A rejected KeyPackage would be too fast.
        validator.validate(message.clone(), "alice")?;
        group.bench_function(format!("{suite:?}"), |bencher| {
            bencher.iter_batched(
                || message.clone(),
                |message| validator.validate(message, "alice"),
                BatchSize::SmallInput,
            );
        });
    }
    Ok(())
}

/// Hashes a KeyPackage to its ref (RFC 9420, section 5.2).
fn keypackage_ref(criterion: &mut Criterion) -> Result<()> {
    let bundle = Maker::new("alice", CIPHERSUITE)?.bundle()?;
    let crypto = RustCrypto::default();
    // A failed hash would be too fast.
    bundle.key_package().hash_ref(&crypto)?;
    criterion.bench_function("hash a KeyPackage to its ref", |bencher| {
        bencher.iter(|| bundle.key_package().hash_ref(&crypto));
    });
    Ok(())
}
