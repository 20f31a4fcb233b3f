//! What the server does with each KeyPackage that is uploaded, before it looks into the database.

use anyhow::Result;
use criterion::{BatchSize, Criterion, Throughput};
use keypool_bench::{Judge, Maker};
use keypool_client::CIPHERSUITE;
use keypool_server::config::Config;
use openmls::prelude::Ciphersuite;
use openmls_rust_crypto::RustCrypto;

fn main() -> Result<()> {
    let mut criterion = Criterion::default().configure_from_args();
    judge(&mut criterion)?;
    keypackage_ref(&mut criterion)?;
    criterion.final_summary();
    Ok(())
}

/// Parses a KeyPackage and checks it, with both signatures: one of each ciphersuite that the server takes.
fn judge(criterion: &mut Criterion) -> Result<()> {
    let mut group = criterion.benchmark_group("parse and validate a KeyPackage");
    group.throughput(Throughput::Elements(1));
    let judge = Judge::new()?;
    for number in Config::default().ciphersuites {
        let suite = Ciphersuite::try_from(number)?;
        let message = Maker::new("alice", suite)?.message()?;
        // What is rejected would be fast.
        judge.judge(message.clone(), "alice")?;
        group.bench_function(format!("{suite:?}"), |bencher| {
            bencher.iter_batched(|| message.clone(), |message| judge.judge(message, "alice"), BatchSize::SmallInput);
        });
    }
    Ok(())
}

/// Hashes a KeyPackage to its ref (RFC 9420, section 5.2).
fn keypackage_ref(criterion: &mut Criterion) -> Result<()> {
    let bundle = Maker::new("alice", CIPHERSUITE)?.bundle()?;
    let crypto = RustCrypto::default();
    // What fails would be fast.
    bundle.key_package().hash_ref(&crypto)?;
    criterion.bench_function("hash a KeyPackage to its ref", |bencher| {
        bencher.iter(|| bundle.key_package().hash_ref(&crypto));
    });
    Ok(())
}
