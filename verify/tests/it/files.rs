//! Proofs of adders, exports of owners, and evidence: good ones and wrong ones.

use std::fs;

use keypool_transparency::{
    adder::Spend,
    encoding::{base64, to_json},
    files::{HandOutsFile, ProofFile},
    key_package::KeyPackageFields,
    owner::Welcome,
    package::{PackageId, Step},
    receipt::Promise,
};

use crate::{
    program::{Files, write_log},
    world::{Server, TTL, Viewer, witness},
};

const A: &str = "anna/phone";

fn seed() -> Vec<u8> {
    fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/seeds/key_package/suite-1")).unwrap()
}

/// A server whose first package has the keys of a real KeyPackage, with a lifetime that adders accept.
fn server(files: &Files) -> Server {
    let mut server = Server::new(1, 0);
    let mut bytes = seed();
    // not_before is 90 days before not_after.
    let fields = KeyPackageFields::parse(&bytes).unwrap();
    let at = bytes.windows(8).position(|bytes| bytes == fields.not_before.to_be_bytes()).unwrap();
    bytes[at..at + 8].copy_from_slice(&(fields.not_after - 90 * 86_400).to_be_bytes());
    let fields = KeyPackageFields::parse(&bytes).unwrap();
    server.packages[0].id = PackageId::of(&fields);
    server.packages[0].fields = fields;
    files.write("kp", bytes);
    files.write("policy", format!("log {}\nquorum none\n", server.log.key.verifier()));
    server
}

fn write_proof(files: &Files, server: &Server, hand_out: usize) -> String {
    let (answers, hand_out) = (server.adder_answers(hand_out), server.hand_outs[hand_out].1.clone());
    let bind = base64(&hand_out.bind.0);
    files.write("proof.json", to_json(&ProofFile::new(hand_out, answers, Vec::new())));
    bind
}

#[test]
fn a_proof_shows_that_an_adder_alone_has_a_package() {
    let files = Files::new();
    let mut server = server(&files);
    server.reserve(0, "bert/phone").unwrap();
    server.now += TTL;
    let own = server.reserve(0, A).unwrap();
    server.spend(own);
    server.sequence();
    let bind = write_proof(&files, &server, own);
    let proof = ["proof", "proof.json", "--policy", "policy", "--keypackage", "kp", "--bind"];
    let with = |bind: &str| files.run(&[&proof[..], &[bind]].concat());
    let answer = with(&bind);
    answer.is(0, "good", "this adder alone has the KeyPackage");
    assert_eq!((answer.json["hand_out"].as_str(), answer.json["adder"].as_str()), (Some("1"), Some(A)));
    assert_eq!(answer.json["package"], server.packages[0].id.to_string());
    // A policy with witnesses wants their cosignatures.
    let (log, key) = (server.log.key.verifier(), witness(1));
    files.write("witnessed", format!("log {log}\nwitness w {}\nquorum w\n", key.verifier()));
    let witnessed = ["proof", "proof.json", "--policy", "witnessed", "--keypackage", "kp", "--bind", &bind];
    files.run(&witnessed).is(3, "cannot-tell", "too few of the policy's witnesses");
    // With another bind or KeyPackage it is no proof for that reader.
    let other = with(&base64(&[1; 32]));
    assert_eq!(other.is(3, "report", "has another bind").json["accused"], "server");
    files.write("kp", seed());
    with(&bind).is(3, "report", "longer than 90 days");
    files.write("kp", &seed()[1..]);
    with(&bind).is(2, "cannot-tell", "KeyPackage:");
    with("AAAA").is(2, "", "");
}

#[test]
fn a_proof_of_a_lie_is_evidence() {
    let files = Files::new();
    let mut server = server(&files);
    let own = server.reserve(0, A).unwrap();
    server.spend(own);
    // The log has another leaf than the receipt of the spend.
    server.outbox.pop();
    let hand_out = server.hand_outs[own].1.clone();
    let record = server.record(keypool_transparency::commitment::Event::Lapse, server.packages[0].id, Some(&hand_out));
    server.log_step(&Step::End(0), &record);
    server.sequence();
    let bind = write_proof(&files, &server, own);
    let proof =
        ["proof", "proof.json", "--policy", "policy", "--keypackage", "kp", "--out", "found.json", "--bind", &bind];
    files.run(&proof).is(1, "misbehaviour", "another event");
    files.run(&["evidence", "found.json", "--policy", "policy"]).is(1, "misbehaviour", "different leaves");
    let text = fs::read_to_string(files.path("found.json")).unwrap();
    files.write("found.json", text.replacen("tag-repeated", "fork", 1));
    files.run(&["evidence", "found.json", "--policy", "policy"]).is(3, "cannot-tell", "unknown field");
    files.run(&["evidence", "nothing.json", "--policy", "policy"]).is(2, "cannot-tell", "nothing.json");
    files.write("found.json", &text);
    files.run(&["evidence", "found.json"]).is(2, "cannot-tell", "--policy or --vkey");
    files.write("policy", "quorum nobody\n");
    files.run(&["evidence", "found.json", "--policy", "policy"]).is(2, "cannot-tell", "not defined");
}

#[test]
fn a_pending_leaf_is_no_proof_yet() {
    let files = Files::new();
    let mut server = server(&files);
    let own = server.reserve(0, A).unwrap();
    let bind = write_proof(&files, &server, own);
    let proof = ["proof", "proof.json", "--policy", "policy", "--keypackage", "kp", "--bind", &bind];
    files.run(&proof).is(3, "cannot-tell", "not in the log yet");
    // Witnesses: evidence of an early lapse needs their time.
    server.now += 5;
    server.end(0, keypool_transparency::commitment::Event::Lapse);
    server.hand_outs[own].1.spend = Spend::RefusedEarly;
    server.sequence();
    write_proof(&files, &server, own);
    files.run(&proof).is(3, "report", "before the time until which the reservation held");
    let mut answers = server.adder_answers(own);
    witness(1).cosign(&mut answers.checkpoint, server.now + 10);
    let hand_out = server.hand_outs[own].1.clone();
    files.write("proof.json", to_json(&ProofFile::new(hand_out, answers, Vec::new())));
    let (log, witness) = (server.log.key.verifier(), witness(1));
    files.write("policy", format!("log {log}\nwitness w {}\nquorum w\n", witness.verifier()));
    files.run(&proof).is(1, "misbehaviour", "before the time until which the reservation held");
    files.run(&["evidence", "evidence.json", "--policy", "policy"]).is(1, "misbehaviour", "lapsed before its time");
}

fn write_export(files: &Files, server: &Server, change: impl FnOnce(&mut HandOutsFile)) {
    let own = server.own_package(0);
    let answers = server.answers(own.package, &own.steps(), Viewer::Owner);
    let mut file = HandOutsFile::new(vec![own], answers, Vec::new());
    change(&mut file);
    files.write("export.json", to_json(&file));
}

#[test]
fn an_owner_sees_to_whom_its_packages_were_handed() {
    let files = Files::new();
    let mut server = server(&files);
    let own = server.reserve(0, A).unwrap();
    server.spend(own);
    server.sequence();
    let handouts = ["handouts", "export.json", "--policy", "policy"];
    let welcome = |sender: &str| Welcome { sender: sender.to_owned(), group_id: b"group".to_vec() };
    write_export(&files, &server, |file| file.packages[0].welcomes.push(welcome(A)));
    let answer = files.run(&handouts);
    answer.is(0, "good", "no other ones");
    let trail = answer.json["trail"].as_array().unwrap();
    assert_eq!(trail.len(), 2);
    assert!(trail[1].as_str().unwrap().contains("hand-out 0: Spend by anna/phone"), "{trail:?}");
    write_export(&files, &server, |file| file.packages[0].rows[1].actor = "bert/phone".to_owned());
    assert_eq!(files.run(&handouts).is(3, "report", "another actor").json["accused"], "server");
    write_export(&files, &server, |file| file.packages[0].welcomes.push(welcome("eve/phone")));
    assert_eq!(files.run(&handouts).is(3, "report", "a Welcome came from eve/phone").json["accused"], "nobody");
}

/// The server's answers leave a hand-out out; the files of an audit have it.
#[test]
fn an_audit_shows_a_hand_out_that_the_server_leaves_out() {
    let files = Files::new();
    let mut server = server(&files);
    server.reserve(0, A).unwrap();
    server.now += TTL;
    server.lapse(0);
    server.sequence();
    let (id, hidden) = (server.packages[0].id, server.new_hand_out("eve/phone", Some(1)));
    let record = server.record(keypool_transparency::commitment::Event::Reserve, id, Some(&hidden));
    let leaf = server.log_step(&Step::Open(1), &record);
    server.sequence();
    server.book.remove(&leaf.tag());
    write_log(&files.path("log"), &server.log, &server.log.checkpoint());
    files.audit(&server.log).is(0, "good", "");
    write_export(&files, &server, |_| {});
    let handouts = ["handouts", "export.json", "--policy", "policy"];
    files.run(&handouts).is(0, "good", "");
    let with_state = [&handouts[..], &["--state", "state"]].concat();
    let answer = files.run(&with_state);
    answer.is(3, "report", "the trail leaves out");
    assert_eq!(answer.json["index"].as_u64(), server.index(&leaf));
    // What came after the trail was read may be honest.
    write_export(&files, &server, |file| file.packages[0].as_of = 16);
    files.run(&with_state).is(0, "good", "");
    files.run(&[&handouts[..], &["--state", "nothing"]].concat()).is(2, "cannot-tell", "no state of an audit");
    // A denial that the server signed makes it evidence as soon as the server shows the leaf.
    let denied = server.receipt("alice/laptop", vec![Promise::None(leaf.tag())]);
    let (_, opening) = server.secret.seal(&Step::Open(1), &record);
    server.book.insert(leaf.tag(), (leaf, opening));
    write_export(&files, &server, |file| file.packages[0].receipts.push(denied));
    files.run(&handouts).is(1, "misbehaviour", "the trail leaves it out");
    files.run(&["evidence", "evidence.json", "--policy", "policy"]).is(1, "misbehaviour", "receipt is false");
}

#[test]
fn help_teaches_with_an_example() {
    let files = Files::new();
    for command in ["proof", "handouts", "audit", "evidence"] {
        let output = files.command(&[command, "--help"]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("Example") && text.contains(&format!("keypool-verify {command}")), "{text}");
    }
    assert_eq!(files.command(&["guess"]).output().unwrap().status.code(), Some(2));
}
