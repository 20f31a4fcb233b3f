//! Measurements: `cargo test --release -p keypool-transparency -- --ignored --nocapture measure`.

use std::time::Instant;

use keypool_transparency::{
    adder,
    answers::{Answer, Answers, Found},
    commitment::{Event, LogSecret, Record},
    key_package::KeyPackageFields,
    leaf::Leaf,
    package::{Bind, PackageId, ReservationId, Step, Tag},
    policy::Policy,
    receipt::{Promise, Receipt},
    tree::Appender,
    verdict::Verdict,
};

use crate::{
    support::{Log, MemoryStore},
    world::fields,
};

fn timed<T>(what: &str, count: usize, work: impl FnOnce() -> T) -> T {
    let begin = Instant::now();
    let result = work();
    let micros = begin.elapsed().as_secs_f64() * 1e6 / f64::from(u32::try_from(count).unwrap());
    #[expect(clippy::print_stdout, reason = "this is the measurement")]
    {
        println!("{what}: {micros:.2} us each of {count}");
    }
    result
}

fn leaf(i: usize) -> Leaf {
    Leaf::new(&Tag(keypool_transparency::merkle::leaf_hash(&i.to_be_bytes())), &[3; 32])
}

fn record(package: PackageId) -> Record {
    Record {
        event: Event::Reserve,
        package,
        owner: "alice/laptop".to_owned(),
        at: 1,
        until: 61,
        actor: "bob/phone".to_owned(),
        group_id: vec![7; 32],
        reservation_id: ReservationId([8; 24]),
        bind: Bind([9; 32]),
    }
}

#[test]
#[ignore = "measures"]
fn the_log_of_a_server() {
    let log = Log::new(1);
    let store = MemoryStore::default();
    let entries: Vec<_> = (0..1_000_000).map(|i| *leaf(i).as_bytes()).collect();
    let mut appender = Appender::new();
    timed("append, in batches of 1,000", entries.len(), || {
        for batch in entries.chunks(1000) {
            store.write(appender.append(batch).unwrap().tiles);
        }
    });
    timed("load the edge, and append 16", 1000, || {
        for i in 0..1000 {
            let batch = Appender::load(&store, 1_000_000).unwrap().append(&entries[i..i + 16]).unwrap();
            assert_eq!(batch.size, 1_000_016);
        }
    });
    let tree = keypool_transparency::tree::Tree::new(&store, 1_000_000);
    timed("paths of leaves side by side", 1000, || (0..1000).for_each(|i| drop(tree.inclusion(i).unwrap())));
    timed("paths of leaves far apart", 1000, || (0..1000).for_each(|i| drop(tree.inclusion(i * 997).unwrap())));
    let package = PackageId([1; 32]);
    timed("leaves with their openings", 10_000, || {
        let secret = LogSecret([2; 32]);
        (0..10_000).for_each(|n| drop(secret.seal(&Step::Open(n), &record(package))));
    });
    let receipt = |i: usize| Receipt {
        origin: log.name().to_owned(),
        size: 1,
        time: 1,
        to: "bob/phone".to_owned(),
        promises: vec![Promise::Leaf(leaf(i))],
    };
    let receipts: Vec<_> = (0..1024).map(receipt).collect();
    timed("receipts, signed alone", 1024, || receipts.iter().for_each(|one| drop(one.sign(&log.key).unwrap())));
    let signed = timed("receipts, 32 a signature", 1024, || {
        receipts.chunks(32).flat_map(|batch| Receipt::sign_batch(batch, &log.key).unwrap()).collect::<Vec<_>>()
    });
    timed("receipts, verified", 1024, || {
        for one in &signed {
            Receipt::verified(one, log.key.verifier()).unwrap();
        }
    });
}

/// A refresh with 1,000 pending checks.
#[test]
#[ignore = "measures"]
fn the_checks_of_an_adder() {
    let mut log = Log::new(1);
    let secret = LogSecret([2; 32]);
    let package = |i: u16| {
        let mut signed = [0; 32];
        signed[..2].copy_from_slice(&i.to_be_bytes());
        KeyPackageFields { signed, ..fields(0, false) }
    };
    let hand_outs: Vec<_> = (0..1000)
        .map(|i| {
            let fields = package(i);
            let (leaf, opening) = secret.seal(&Step::Open(0), &record(PackageId::of(&fields)));
            (fields, leaf, opening)
        })
        .collect();
    log.append(&hand_outs.iter().map(|(_, leaf, _)| *leaf.as_bytes()).collect::<Vec<_>>());
    log.append(&(0..100_000).map(|i| *leaf(i).as_bytes()).collect::<Vec<_>>());
    let tree = log.tree(log.size());
    let proofs = hand_outs.iter().zip(0..).map(|((_, leaf, opening), index)| Answer {
        tag: leaf.tag(),
        found: Found::Included {
            leaf: *leaf,
            index,
            path: tree.inclusion(index).unwrap(),
            opening: Some(opening.clone()),
            heirs: Vec::new(),
        },
    });
    let answers = Answers {
        checkpoint: log.checkpoint(),
        proofs: proofs.collect(),
        receipt: None,
        consistency: Vec::new(),
        heirs: Vec::new(),
    };
    let receipts: Vec<_> = hand_outs
        .iter()
        .map(|(_, leaf, _)| Receipt {
            origin: log.name().to_owned(),
            size: 1,
            time: 1,
            to: "bob/phone".to_owned(),
            promises: vec![Promise::Leaf(*leaf)],
        })
        .collect();
    let receipts = Receipt::sign_batch(&receipts, &log.key).unwrap();
    let json = serde_json::to_string(&answers).unwrap();
    let policy = Policy::of_logs([log.key.verifier().clone()]);
    timed("hand-outs, from JSON to verdict", 1000, || {
        let answers: Answers = serde_json::from_str(&json).unwrap();
        let answers = answers.check(&policy.log_keys()).unwrap();
        for ((fields, ..), receipt) in hand_outs.iter().zip(receipts) {
            let Record { owner, actor, group_id, reservation_id, bind, .. } = record(PackageId::of(fields));
            let (n, until, spend, receipts) = (Some(0), Some(61), adder::Spend::Not, vec![receipt]);
            let spent_for = Vec::new();
            let own =
                adder::HandOut { n, owner, actor, group_id, spent_for, reservation_id, bind, until, spend, receipts };
            assert_eq!(adder::check(&own, fields, &[], &answers, &policy), Verdict::Fine);
        }
    });
}
