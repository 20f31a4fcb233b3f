//! `vectors.json`: values that another implementation can compute and compare. The test fails when the file is stale.

use keypool_transparency::{
    commitment::{Event, LogSecret, Record},
    encoding::base64,
    evidence::{Evidence, EvidenceFile},
    key_package::KeyPackageFields,
    leaf::{Kept, Leaf, TextLeaf},
    merkle::leaf_hash,
    note::{Note, SignerKey},
    origin::{Origin, key_note},
    package::{Bind, PackageId, ReservationId, Step},
    receipt::{Promise, Receipt},
    statement::Statement,
    tile::{TileId, TileKind},
    tree::TileStore,
    verification::verify,
};
use serde_json::{Value, json};

use crate::support::Log;

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/vectors.json");

fn package() -> (Value, PackageId) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/seeds/key_package/suite-1");
    let bytes = std::fs::read(path).unwrap();
    let fields = KeyPackageFields::parse(&bytes).unwrap();
    let id = PackageId::of(&fields);
    let value = json!({
        "key_package": base64(&bytes),
        "not_before": fields.not_before,
        "not_after": fields.not_after,
        "last_resort": fields.last_resort,
        "P": id,
    });
    (value, id)
}

fn record(event: Event, package: PackageId) -> Record {
    Record {
        event,
        package,
        owner: "alice/laptop".to_owned(),
        at: 1_700_000_000,
        until: if event == Event::Reserve { 1_700_000_060 } else { 0 },
        actor: "böb/phone".to_owned(),
        group_id: b"group".to_vec(),
        reservation_id: ReservationId::new(42, [0x33; 16]),
        bind: Bind([0x77; 32]),
    }
}

fn steps(package: PackageId, secret: &LogSecret) -> (Vec<Value>, Vec<Leaf>) {
    let reservation = ReservationId::new(42, [0x33; 16]);
    let all = [
        ("open", Step::Open(0), Event::Reserve),
        ("end", Step::End(0), Event::Lapse),
        ("open", Step::Open(1), Event::Reserve),
        ("end", Step::End(1), Event::Spend),
        ("end", Step::End(2), Event::Revoke),
        ("use", Step::Use(reservation), Event::Reserve),
        ("used", Step::Used(reservation), Event::Spend),
    ];
    let one = |(name, step, event): (&str, Step, Event)| {
        let record = record(event, package);
        let (leaf, opening) = secret.seal(&step, &record);
        let actor = opening.actor.as_ref().unwrap();
        let value = json!({
            "step": name,
            "n": step.n(),
            "event": event,
            "owner": record.owner,
            "at": record.at,
            "until": record.until,
            "actor": record.actor,
            "group_id": base64(&record.group_id),
            "reservation_id": record.reservation_id,
            "bind": record.bind,
            "tag": leaf.tag(),
            "salt": base64(&opening.details.salt),
            "salt2": base64(&actor.salt),
            "actor_commit": base64(&actor.commitment()),
            "commitment": base64(&leaf.commitment()),
            "leaf": leaf,
            "opening": opening,
        });
        (value, leaf)
    };
    all.into_iter().map(one).unzip()
}

fn log(leaves: &[Leaf]) -> Log {
    let mut log = Log::new(2);
    let kept = Kept { origin: Log::new(1).name().to_owned(), size: 5, root: [0x55; 32] };
    let origin = TextLeaf::Origin { name: log.name().to_owned(), kept: Some(kept) };
    log.append(&[origin.to_bytes()]);
    log.append(&leaves.iter().map(Leaf::as_bytes).collect::<Vec<_>>());
    let filling = |i: u64| Leaf::new(&keypool_transparency::package::Tag(leaf_hash(&i.to_be_bytes())), &[0x99; 32]);
    log.append(&(0..300).map(|i| *filling(i).as_bytes()).collect::<Vec<_>>());
    log.append(&[TextLeaf::Stop.to_bytes()]);
    log
}

fn tree(log: &Log) -> Value {
    let size = log.size();
    let hashes = |hashes: Vec<[u8; 32]>| hashes.iter().map(|hash| base64(hash)).collect::<Vec<_>>();
    let tile = |kind, index| {
        let tile = TileId::in_tree(kind, index, size).unwrap();
        let bytes = log.store.read(&tile).unwrap().unwrap();
        json!({ "path": tile, "bytes": base64(&bytes) })
    };
    let inclusion = |index| {
        json!({
            "index": index,
            "size": size,
            "leaf_hash": base64(&leaf_hash(&log.entries[usize::try_from(index).unwrap()])),
            "path": hashes(log.tree(size).inclusion(index).unwrap()),
        })
    };
    let consistency = |smaller: u64| {
        json!({
            "smaller": smaller,
            "smaller_root": base64(&log.root(smaller)),
            "larger": size,
            "path": hashes(log.tree(size).consistency(smaller).unwrap()),
            "explicit_path": hashes(log.tree(size).explicit_consistency(smaller).unwrap()),
        })
    };
    json!({
        "size": size,
        "root": base64(&log.root(size)),
        "tiles": [
            tile(TileKind::Hashes(0), 0), tile(TileKind::Hashes(0), 1), tile(TileKind::Hashes(1), 0),
            tile(TileKind::Entries, 0), tile(TileKind::Entries, 1),
        ],
        "inclusion": [inclusion(0), inclusion(3), inclusion(255), inclusion(size - 1)],
        "consistency": [consistency(1), consistency(8), consistency(256), consistency(300)],
    })
}

fn notes(log: &Log, leaves: &[Leaf]) -> Value {
    let mut cosigned = log.checkpoint();
    let witness = SignerKey::cosigner("witness.example/w", &[4; 32]).unwrap();
    witness.cosign(&mut cosigned, 1_700_000_100);
    let receipt = |to: &str, promises| Receipt {
        origin: log.name().to_owned(),
        size: 8,
        time: 1_700_000_001,
        to: to.to_owned(),
        promises,
    };
    let one = receipt("böb/phone", vec![Promise::Leaf(leaves[0]), Promise::Leaf(leaves[3])]);
    let two = receipt("alice/laptop", vec![Promise::None(leaves[1].tag())]);
    let three = receipt("carol/tablet", vec![]);
    let single = one.sign(&log.key).unwrap();
    let batch = Receipt::sign_batch(&[one, two, three], &log.key).unwrap();
    let next = Log::new(3);
    json!({
        "checkpoint": log.checkpoint(),
        "witness": { "seed": base64(&[4; 32]), "vkey": witness.verifier(), "time": 1_700_000_100, "cosigned": cosigned },
        "receipt": single,
        "receipts_of_a_batch": batch,
        "key_note": key_note(&log.key, next.key.verifier()).unwrap(),
    })
}

fn evidence(log: &Log, leaves: &[Leaf]) -> Vec<EvidenceFile> {
    let index = 1;
    let path = log.tree(log.size()).inclusion(index).unwrap();
    let checkpoint: Note = log.checkpoint();
    let one = Statement::Included { leaf: leaves[0], index, path, heirs: Vec::new(), checkpoint: checkpoint.clone() };
    let leaf = Leaf::new(&leaves[0].tag(), &[0x11; 32]);
    let (origin, to) = (log.name().to_owned(), "carol/tablet".to_owned());
    let receipt = Receipt { origin, size: 8, time: 1_700_000_001, to, promises: vec![Promise::Leaf(leaf)] };
    let other = Statement::Receipt { leaf, receipt: receipt.sign(&log.key).unwrap() };
    let mut fork = Log::new(2);
    fork.append(&[[1; 65]; 8]);
    let path = log.tree(log.size()).explicit_consistency(8).unwrap();
    let (smaller, larger) = (fork.checkpoint(), checkpoint);
    [Evidence::TagRepeated { one, other }, Evidence::Fork { smaller, larger, path }]
        .map(|evidence| EvidenceFile::new(evidence, Vec::new()))
        .into()
}

fn vectors() -> Value {
    let (package, id) = package();
    let secret = LogSecret([0x22; 32]);
    let (steps, leaves) = steps(id, &secret);
    let log = log(&leaves);
    let files = evidence(&log, &leaves);
    let policy = keypool_transparency::policy::Policy::of_logs([log.key.verifier().clone()]);
    for file in &files {
        assert!(matches!(verify(file, &policy), keypool_transparency::verification::Outcome::Proven(_)));
    }
    let origin: Origin = log.name().parse().unwrap();
    json!({
        "about": "Values of docs/transparency.md. Bytes are base64; notes, receipts and paths are text.",
        "package": package,
        "log_secret": base64(&secret.0),
        "steps": steps,
        "log_key": { "file_key": base64(&[7; 32]), "origin": origin, "vkey": log.key.verifier() },
        "origin_entry": base64(&log.entries[0]),
        "stop_entry": base64(&TextLeaf::Stop.to_bytes()),
        "tree": tree(&log),
        "notes": notes(&log, &leaves),
        "evidence": files,
    })
}

/// `KEYPOOL_WRITE_VECTORS=1 cargo test -p keypool-transparency vectors` writes the file.
#[test]
fn the_file_of_vectors_is_up_to_date() {
    let vectors = vectors();
    if std::env::var_os("KEYPOOL_WRITE_VECTORS").is_some() {
        std::fs::write(PATH, serde_json::to_string_pretty(&vectors).unwrap() + "\n").unwrap();
    }
    let file = std::fs::read_to_string(PATH).unwrap();
    let file: Value = serde_json::from_str(&file).unwrap();
    assert!(
        file == vectors,
        "vectors.json is stale: KEYPOOL_WRITE_VECTORS=1 cargo test -p keypool-transparency vectors"
    );
}
