//! Notes, keys, cosignatures, policies and receipts.

use keypool_transparency::{
    checkpoint::{BadNote, Checkpoint},
    leaf::Leaf,
    note::{NotSigned, Note, SignerKey, VerifierKey},
    origin::{follow, key_note},
    package::Tag,
    policy::{LogKeys, Policy},
    receipt::{Promise, Receipt},
};
use rstest::rstest;
use signed_note::{StandardVerifier, VerifierList};

use crate::support::{Log, origin};

/// The example of C2SP signed-note.
#[test]
fn the_example_of_signed_note_verifies() {
    let key: VerifierKey = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k".parse().unwrap();
    let text = "This is an example message.\n\n\u{2014} example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n";
    let note: Note = text.parse().unwrap();
    assert_eq!(note.verify(&key), Ok(()));
    assert_eq!(note.to_string(), text);
    let changed: Note = text.replace("message", "massage").parse().unwrap();
    assert_eq!(changed.verify(&key), Err(NotSigned::Wrong));
}

#[test]
fn signed_note_and_tlog_tiles_read_our_checkpoints() {
    let mut log = Log::new(1);
    log.append(&[b"one", b"two"]);
    let note = log.checkpoint();
    let theirs = signed_note::Note::from_bytes(note.to_string().as_bytes()).unwrap();
    let standard = StandardVerifier::new(&log.key.verifier().to_string()).unwrap();
    let (verified, unverified) = theirs.verify(&VerifierList::new(vec![Box::new(standard)])).unwrap();
    assert_eq!((verified.len(), unverified.len()), (1, 0));
    let checkpoint = tlog_tiles::Checkpoint::from_bytes(theirs.text()).unwrap();
    assert_eq!((checkpoint.origin(), checkpoint.size(), checkpoint.extension()), (log.name(), 2, ""));
    assert_eq!(checkpoint.hash().0, log.root(2));
    assert_eq!(Checkpoint::verified(&note, log.key.verifier()), Ok(log.checkpoint_at(2)));
}

#[rstest]
#[case("", "has fewer than three lines")]
#[case("o\n01\n{root}\n", "not a decimal number without leading zeroes")]
#[case("o\n-1\n{root}\n", "not a decimal number")]
#[case("o\n1\nAAAA\n", "must have 32 bytes, not 3")]
#[case("o\n1\n{root}\n\next\n", "an empty line")]
#[case("\n1\n{root}\n", "an empty line")]
fn a_malformed_checkpoint_is_refused(#[case] text: &str, #[case] why: &str) {
    let key = SignerKey::new("o", &[1; 32]).unwrap();
    let text = text.replace("{root}", &keypool_transparency::encoding::base64(&[5; 32]));
    let note = key.sign(if text.is_empty() { "o\n" } else { &text }).unwrap();
    let error = Checkpoint::verified(&note, key.verifier()).unwrap_err().to_string();
    assert!(error.contains(why), "{error}");
}

#[test]
fn extension_lines_are_passed_over() {
    let key = SignerKey::new("o", &[1; 32]).unwrap();
    let root = keypool_transparency::encoding::base64(&[5; 32]);
    let note = key.sign(&format!("o\n3\n{root}\nmore\n")).unwrap();
    let expected = Checkpoint { origin: "o".to_owned(), size: 3, root: [5; 32] };
    assert_eq!(Checkpoint::verified(&note, key.verifier()), Ok(expected));
}

#[test]
fn a_checkpoint_of_another_key_or_origin_is_refused() {
    let (log, other) = (Log::new(1), Log::new(2));
    let checkpoint = Checkpoint::verified(&log.checkpoint(), other.key.verifier());
    assert!(matches!(checkpoint, Err(BadNote::OtherOrigin { .. })));
    let thief = origin(1).key(&[8; 32]).unwrap();
    let error = Checkpoint::verified(&log.checkpoint(), thief.verifier()).unwrap_err();
    assert_eq!(error, BadNote::NotSigned { key: log.name().to_owned(), why: NotSigned::Missing });
    let foreign = other.key.sign(log.checkpoint().text()).unwrap();
    assert!(Checkpoint::verified(&foreign, log.key.verifier()).is_err());
}

#[rstest]
#[case("keypool/1f1f1f1f1f1f1f1f/1-01010101", true)]
#[case("keypool/1F1f1f1f1f1f1f1f/1-01010101", false)]
#[case("keypool/1f1f1f1f1f1f1f1f/01-01010101", false)]
#[case("keypool/1f1f1f1f1f1f1f1f/0-01010101", false)]
#[case("keypool/1f1f1f1f1f1f1f/1-01010101", false)]
#[case("keypool/1f1f1f1f1f1f1f1f/1-010101010", false)]
#[case("keypool/1f1f1f1f1f1f1f1f/+1-01010101", false)]
fn origins_have_one_form(#[case] text: &str, #[case] accepted: bool) {
    assert_eq!(text.parse::<keypool_transparency::origin::Origin>().is_ok(), accepted);
}

#[test]
fn an_old_key_names_the_next_one() {
    let [first, second, third] = [1, 2, 3].map(|k| origin(k).key(&[7; 32]).unwrap());
    assert_ne!(first.verifier().public_key(), second.verifier().public_key());
    let note = key_note(&first, second.verifier()).unwrap();
    assert_eq!(follow(first.verifier(), &note).as_ref(), Ok(second.verifier()));
    assert!(follow(second.verifier(), &note).is_err());
    let mut keys: LogKeys = [first.verifier().clone()].into_iter().collect();
    let later = key_note(&second, third.verifier()).unwrap();
    assert!(keys.follow(&later).is_err());
    keys.follow(&note).unwrap();
    keys.follow(&later).unwrap();
    assert_eq!(keys.get(third.verifier().name()), Some(third.verifier()));
    // Nobody but the old key can name a next one, and a known key stays.
    let thief = SignerKey::new(first.verifier().name(), &[9; 32]).unwrap();
    assert!(keys.follow(&key_note(&thief, thief.verifier()).unwrap()).is_err());
    let other = SignerKey::new(second.verifier().name(), &[9; 32]).unwrap();
    keys.follow(&key_note(&first, other.verifier()).unwrap()).unwrap();
    assert_eq!(keys.get(second.verifier().name()), Some(second.verifier()));
}

fn receipt(log: &Log, to: &str, leaves: u8) -> Receipt {
    let leaf = |i: u8| Promise::Leaf(Leaf::new(&Tag([i; 32]), &[i; 32]));
    let mut promises: Vec<_> = (0..leaves).map(leaf).collect();
    promises.push(Promise::None(Tag([0xee; 32])));
    Receipt { origin: log.name().to_owned(), size: 3, time: 1_700_000_000, to: to.to_owned(), promises }
}

#[test]
fn a_receipt_is_read_as_it_was_signed_alone_or_in_a_batch() {
    let log = Log::new(1);
    for count in [1_u8, 2, 3, 16, 33] {
        let receipts: Vec<_> = (0..count).map(|i| receipt(&log, &format!("user {i}/phone"), i % 3)).collect();
        let signed = Receipt::sign_batch(&receipts, &log.key).unwrap();
        assert_eq!(signed.len(), receipts.len());
        for (text, receipt) in signed.iter().zip(&receipts) {
            assert_eq!(Receipt::verified(text, log.key.verifier()).as_ref(), Ok(receipt));
            assert_eq!(text.contains("\nindex "), count > 1);
            assert_eq!(Receipt::unverified(text).as_ref(), Ok(receipt));
        }
    }
    assert_eq!(Receipt::sign_batch(&[], &log.key), Ok(Vec::new()));
}

/// Anybody can make signatures that verify under a point of small order.
#[test]
fn a_key_of_small_order_is_refused() {
    let mut point = [0; 33];
    (point[0], point[1]) = (1, 1); // Ed25519, and the neutral element
    let digest = <sha2::Sha256 as sha2::Digest>::digest([b"weak\n", &point[..]].concat());
    let text = format!("weak+{}+{}", hex::encode(&digest[..4]), keypool_transparency::encoding::base64(&point));
    let error = text.parse::<VerifierKey>().unwrap_err();
    assert_eq!(error.to_string(), "verifier key: it is a point of small order");
}

#[rstest]
#[case("example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k", "")]
#[case("example.com/foo+530d903b+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k", "its key id is not")]
#[case("example.com/foo+530D903A+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k", "its key id is not")]
#[case("example.com foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k", "has white space")]
#[case("example.com/foo+530d903a+AukyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k", "its algorithm is unknown")]
#[case("example.com/foo+530d903a+Aekyeg==", "an Ed25519 key has 32 bytes")]
#[case("example.com/foo+530d903a", "it is not <name>+<key id>+<key>")]
fn verifier_keys_have_one_form(#[case] text: &str, #[case] why: &str) {
    match text.parse::<VerifierKey>() {
        Ok(key) => assert_eq!((key.to_string().as_str(), why), (text, "")),
        Err(error) => assert!(!why.is_empty() && error.to_string().contains(why), "{error}"),
    }
}

/// The signed root of a batch is of the receipt's own log.
#[test]
fn a_batch_names_the_log_of_its_receipts() {
    let log = Log::new(1);
    let signed = Receipt::sign_batch(&[receipt(&log, "a/b", 1), receipt(&log, "c/d", 1)], &log.key).unwrap();
    let start = signed[0].find("keypool/receipts/v1").unwrap();
    for (origin, is_accepted) in [(log.name(), true), ("keypool/1f1f1f1f1f1f1f1f/9-01010101", false)] {
        let note: Note = signed[0][start..].parse().unwrap();
        let text = note.text().replacen(log.name(), origin, 1);
        let other = format!("{}{}", &signed[0][..start], log.key.sign(&text).unwrap());
        assert_eq!(Receipt::verified(&other, log.key.verifier()).is_ok(), is_accepted, "{other}");
    }
}

/// A receipt is no checkpoint, no batch and no key note, and none of these is a receipt.
#[test]
fn no_note_passes_for_one_of_another_kind() {
    let (log, next) = (Log::new(1), Log::new(2));
    let key = log.key.verifier();
    let one: Note = receipt(&log, "a/b", 1).sign(&log.key).unwrap().parse().unwrap();
    let batch = Receipt::sign_batch(&[receipt(&log, "a/b", 1), receipt(&log, "c/d", 1)], &log.key).unwrap();
    let batch: Note = batch[0][batch[0].find("keypool/receipts/v1").unwrap()..].parse().unwrap();
    let key_note = key_note(&log.key, next.key.verifier()).unwrap();
    for note in [&one, &batch, &key_note] {
        assert_eq!(note.verify(key), Ok(()));
        assert!(Checkpoint::verified(note, key).is_err());
        assert_eq!(Receipt::verified(&note.to_string(), key).is_ok(), *note == one);
        assert_eq!(follow(key, note).is_ok(), *note == key_note);
    }
    assert!(Receipt::verified(&log.checkpoint().to_string(), key).is_err());
}

#[test]
fn a_name_cannot_bring_lines_into_a_receipt() {
    let log = Log::new(1);
    let error = receipt(&log, &format!("a/b\nnone {}", Tag([1; 32])), 0).sign(&log.key).unwrap_err();
    assert_eq!(error.to_string(), "receipt: a name in it has a newline");
    let other = Log::new(2);
    assert!(receipt(&other, "a/b", 0).sign(&log.key).is_err());
}

const POLICY: &str = "
# two of three, and the auditor
log {log}
witness W1 {w1}
witness W2 {w2} https://w2.example/
witness W3 {w3}
\tgroup  two 2 W1 W2 W3
witness auditor {w4}
group all all two auditor
quorum all
";

fn witnesses() -> [SignerKey; 4] {
    [1, 2, 3, 4].map(|i| SignerKey::cosigner(&format!("witness.example/w{i}"), &[i; 32]).unwrap())
}

fn policy_text(log: &Log) -> String {
    let mut text = POLICY.replace("{log}", &log.key.verifier().to_string());
    for (i, witness) in (1..).zip(witnesses()) {
        text = text.replace(&format!("{{w{i}}}"), &witness.verifier().to_string());
    }
    text
}

#[test]
fn a_quorum_is_counted_as_its_groups_say() {
    let log = Log::new(1);
    let policy: Policy = policy_text(&log).parse().unwrap();
    assert_eq!(policy.witnesses[1].url.as_deref(), Some("https://w2.example/"));
    for (signers, expected) in
        [(&[0, 1, 3][..], true), (&[1, 2, 3], true), (&[0, 1, 2], false), (&[0, 3], false), (&[0, 0, 3], false)]
    {
        let mut note = log.checkpoint();
        for i in signers {
            witnesses()[*i].cosign(&mut note, 1000);
        }
        let note: Note = note.to_string().parse().unwrap();
        assert_eq!(policy.has_quorum(&note, |_| true), expected, "{signers:?}");
        assert_eq!(note.cosigned_at(witnesses()[3].verifier()).ok(), signers.contains(&3).then_some(1000));
        assert!(!policy.has_quorum(&note, |time| time < 1000));
        assert!(Checkpoint::verified(&note, log.key.verifier()).is_ok());
    }
    let mut forged = log.checkpoint();
    let thief = SignerKey::cosigner("witness.example/w4", &[9; 32]).unwrap();
    for key in [&witnesses()[0], &witnesses()[1], &thief] {
        key.cosign(&mut forged, 1000);
    }
    assert!(!policy.has_quorum(&forged, |_| true));
    assert!(!Policy::of_logs([]).has_quorum(&forged, |_| true), "nobody vouches for times without witnesses");
}

/// Of several cosignatures of one witness the earliest counts, and a time has 63 bits.
#[test]
fn the_time_of_a_cosignature_is_the_earliest() {
    let (log, witness) = (Log::new(1), &witnesses()[0]);
    let mut note = log.checkpoint();
    for time in [2000, 1000, 3000] {
        witness.cosign(&mut note, time);
    }
    assert_eq!(note.cosigned_at(witness.verifier()), Ok(1000));
    for (time, expected) in [(u64::MAX >> 1, Ok(u64::MAX >> 1)), ((u64::MAX >> 1) + 1, Err(NotSigned::Wrong))] {
        let mut note = log.checkpoint();
        witness.cosign(&mut note, time);
        assert_eq!(note.cosigned_at(witness.verifier()), expected);
    }
}

#[rstest]
#[case("quorum all", "quorum nobody", "not defined")]
#[case("quorum all", "", "no quorum line")]
#[case("quorum all", "quorum all\nquorum all", "two quorum lines")]
#[case("group all all two auditor", "group all all two W1", "a member twice")]
#[case("two 2 W1", "two 4 W1", "between 1 and the number of members")]
#[case("two 2 W1", "two 02 W1", "no number")]
#[case("witness W3 ", "witness W2 ", "defined twice")]
#[case("log ", "logs ", "none of log, witness, group and quorum")]
#[case("# two", "\r# two", "control character")]
fn a_malformed_policy_is_refused(#[case] from: &str, #[case] to: &str, #[case] why: &str) {
    let text = policy_text(&Log::new(1));
    assert!(text.parse::<Policy>().is_ok());
    let error = text.replacen(from, to, 1).parse::<Policy>().unwrap_err().to_string();
    assert!(error.contains(why), "{error}");
}

#[test]
fn a_policy_names_a_public_key_once() {
    let key = witnesses()[0].verifier().to_string();
    let renamed = SignerKey::cosigner("other.example", &[1; 32]).unwrap().verifier().to_string();
    let error = format!("witness a {key}\nwitness b {renamed}\nquorum a\n").parse::<Policy>().unwrap_err();
    assert_eq!(error.to_string(), "policy: two lines have one public key");
    let log = Log::new(1).key.verifier().to_string();
    assert!(format!("witness a {log}\nquorum a\n").parse::<Policy>().is_err());
    assert!(format!("log {key}\nquorum none\n").parse::<Policy>().is_err());
}

#[test]
fn a_tlog_proof_stands_alone() {
    use keypool_transparency::{
        merkle::leaf_hash,
        policy::NotAccepted,
        tlog_proof::{BadProof, TlogProof},
    };
    let mut log = Log::new(1);
    log.append(&(0..20_u8).map(|i| [i; 65]).collect::<Vec<_>>());
    let policy: Policy = policy_text(&log).parse().unwrap();
    let mut checkpoint = log.checkpoint();
    let lone = Policy::of_logs([log.key.verifier().clone()]);
    let proof = |checkpoint: &Note, extra| TlogProof {
        extra,
        index: 7,
        path: log.tree(20).inclusion(7).unwrap(),
        checkpoint: checkpoint.clone(),
    };
    let (hash, other) = (leaf_hash(&[7; 65]), leaf_hash(&[8; 65]));
    let unwitnessed = proof(&checkpoint, None);
    assert_eq!(unwitnessed.verify(&hash, &lone), Ok(log.checkpoint_at(20)));
    assert_eq!(unwitnessed.verify(&other, &lone), Err(BadProof::NotIncluded));
    assert_eq!(unwitnessed.verify(&hash, &policy), Err(BadProof::Checkpoint(NotAccepted::NoQuorum)));
    for i in [0, 1, 3] {
        witnesses()[i].cosign(&mut checkpoint, 1000);
    }
    for extra in [None, Some(b"more".to_vec()), Some(Vec::new())] {
        let proof = proof(&checkpoint, extra);
        let text = proof.to_string();
        let read: TlogProof = text.parse().unwrap();
        assert_eq!((&read, read.to_string()), (&proof, text.clone()));
        assert_eq!(read.verify(&hash, &policy), Ok(log.checkpoint_at(20)));
        for (from, to) in [("index 7", "index 07"), ("@v1", "@v2"), ("index", "place"), ("\n\nkeypool", "\nkeypool")] {
            assert!(text.replacen(from, to, 1).parse::<TlogProof>().is_err(), "{from}");
        }
    }
}
