//! Text and JSON of the transparency log: signed notes, checkpoints, receipts, names, keys, policies, proofs, and evidence. A
//! server shows them to clients and auditors, and anybody gives evidence to `keypool-verify`.
#![no_main]

use std::{fmt::Display, str::FromStr, sync::LazyLock};

use keypool_transparency::{
    adder,
    checkpoint::Checkpoint,
    encoding::from_json,
    evidence::EvidenceFile,
    files::{HandOutsFile, MAX_SIZE, ProofFile},
    key_package::KeyPackageFields,
    note::{Note, VerifierKey},
    origin::{Origin, key_note_origin},
    owner,
    policy::Policy,
    receipt::Receipt,
    tile::TileId,
    tlog_proof::TlogProof,
    verification::{Outcome, verify},
};
use libfuzzer_sys::fuzz_target;

const KEY: &str = include_str!("../seeds/log_text/vkey");
const EVIDENCE: &[u8] = include_bytes!("../seeds/log_text/evidence-0");
const RECEIPT: &str = include_str!("../seeds/log_text/receipt-of-a-batch");
const KEY_PACKAGE: &[u8] = include_bytes!("../seeds/log_bytes/key-package");

/// Believes the log of the seeds.
static POLICY: LazyLock<Policy> =
    LazyLock::new(|| Policy::of_logs([KEY.parse::<VerifierKey>().expect("the good key is read")]));

/// Believes no log: by it, nothing is proven.
static NOBODY: LazyLock<Policy> = LazyLock::new(|| Policy::of_logs([]));

fuzz_target!(
    init: {
        let evidence = EvidenceFile::from_json(EVIDENCE).expect("the good evidence is read");
        assert!(matches!(verify(&evidence, &POLICY), Outcome::Proven(_)), "the good evidence proves something");
        POLICY.log_keys().receipt(RECEIPT).expect("the good receipt is signed by the log");
    },
    |text: &str| {
        is_one_text::<Origin>(text);
        is_one_text::<TileId>(text);
        is_one_text::<VerifierKey>(text);
        is_one_text::<TlogProof>(text);
        let _ = text.parse::<Policy>();
        if let Ok(receipt) = Receipt::unverified(text) {
            let signed = POLICY.log_keys().receipt(text);
            assert!(signed.is_err() || signed == Ok(receipt), "a signature changes what the receipt says");
        }
        check_note(text);
        check_files(text.as_bytes());
    }
);

/// What is read is written again in the same way.
fn is_one_text<T: FromStr + Display>(text: &str) {
    if let Ok(read) = text.parse::<T>() {
        assert_eq!(read.to_string(), text, "it has two forms");
    }
}

fn check_note(text: &str) {
    is_one_text::<Note>(text);
    let Ok(note) = text.parse::<Note>() else { return };
    let (checkpoint, is_key_note) = (Checkpoint::unverified(&note), key_note_origin(&note).is_ok());
    assert!(checkpoint.is_err() || !is_key_note, "a checkpoint is a note about keys, too");
    if let Ok(checkpoint) = checkpoint {
        assert_eq!(checkpoint.to_string(), note.text(), "the checkpoint is another");
        assert!(Receipt::unverified(text).is_err(), "a checkpoint is a receipt, too");
    }
}

fn check_files(json: &[u8]) {
    if let Ok(evidence) = EvidenceFile::from_json(json) {
        let again = EvidenceFile::from_json(evidence.to_json().as_bytes()).expect("what is written can be read");
        assert_eq!(again, evidence, "it is another after it was written");
        assert!(!matches!(verify(&evidence, &NOBODY), Outcome::Proven(_)), "evidence needs no log's key");
        let _ = verify(&evidence, &POLICY);
    }
    if let Ok(file) = from_json::<ProofFile>(json, MAX_SIZE)
        && let Ok(proven) = file.answers.check(&POLICY.log_keys())
    {
        let fields = KeyPackageFields::parse(KEY_PACKAGE).expect("the good KeyPackage is read");
        let _ = adder::check(&file.hand_out, &fields, &[], &proven, &POLICY);
    }
    if let Ok(file) = from_json::<HandOutsFile>(json, MAX_SIZE)
        && let Ok(proven) = file.answers.check(&POLICY.log_keys())
    {
        for package in &file.packages {
            let _ = owner::check(package, &proven, &POLICY);
        }
    }
}
