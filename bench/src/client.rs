//! Generating KeyPackages: in one transaction into the client's file, and in OpenMLS's in-memory storage.

use std::time::{Duration, Instant};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;
use keypool_client::{
    CIPHERSUITE, Clock, DeviceIdentity, KeyPackagePool, KeyPackagePoolConfig, LocalStore, SystemClock,
};
use openmls::prelude::{BasicCredential, CredentialWithKey, KeyPackageBuilder, Lifetime};
use openmls_basic_credential::SignatureKeyPair;
use openmls_rust_crypto::OpenMlsRustCrypto;

use crate::report::Comparison;

const COUNTS: [usize; 2] = [32, 1_000];

pub(crate) fn measure(rounds: u32) -> Result<Vec<Comparison>> {
    let bar = ProgressBar::new(u64::from(rounds) * COUNTS.len() as u64);
    bar.set_style(ProgressStyle::with_template("[{bar:32}] {pos}/{len} {msg}")?.progress_chars("=> "));
    let mut comparisons = Vec::new();
    for count in COUNTS {
        let what = format!("{count} KeyPackages, stored");
        bar.set_message(what.clone());
        let mut times = Vec::new();
        for round in 0..rounds {
            // Who goes first changes, since the second finds warmer caches.
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
    pool.generate_and_update_pool(&identity, CIPHERSUITE, (count, false), now, &|_| {})?;
    Ok(started.elapsed())
}

fn in_memory(count: usize) -> Result<Duration> {
    let provider = OpenMlsRustCrypto::default();
    let signer = SignatureKeyPair::new(CIPHERSUITE.signature_algorithm())?;
    let credential = || CredentialWithKey {
        credential: BasicCredential::new(b"alice/laptop".to_vec()).into(),
        signature_key: signer.to_public_vec().into(),
    };
    let lifetime = lifetime(SystemClock.now())?;
    let started = Instant::now();
    for _ in 0..count {
        KeyPackageBuilder::new().key_package_lifetime(lifetime).build(CIPHERSUITE, &provider, &signer, credential())?;
    }
    Ok(started.elapsed())
}

fn lifetime(now: Timestamp) -> Result<Lifetime> {
    let now = u64::try_from(now.as_second())?;
    Ok(Lifetime::init(now - 3_600, now + 14 * 86_400))
}
