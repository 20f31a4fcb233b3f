//! Audits of log directories: good ones, and each way to tamper with one.

use std::{
    fs,
    io::{BufRead, BufReader},
    process::Stdio,
    thread::sleep,
    time::{Duration, Instant},
};

use keypool_transparency::{
    leaf::{Leaf, TextLeaf},
    note::SignerKey,
    tree::Appender,
};
use rstest::rstest;

use crate::{
    program::{Files, append, leaf, write_log, write_log_of},
    support::{Log, origin},
};

/// A log in the directory `log`, with its origin and some leaves.
fn log(files: &Files, leaves: u64) -> Log {
    let mut log = Log::new(1);
    log.append(&[TextLeaf::Origin { name: log.name().to_owned(), kept: None }.to_bytes()]);
    append(&mut log, 0..leaves);
    write_log(&files.path("log"), &log, &log.checkpoint());
    log
}

#[test]
fn a_log_is_followed() {
    let files = Files::new();
    let mut log = log(&files, 1000);
    let answer = files.audit(&log);
    answer.is(0, "good", "no tag repeats");
    assert_eq!((answer.json["size"].as_u64(), answer.json["new"].as_u64()), (Some(1001), Some(1001)));
    assert_eq!(answer.json["texts"], 1);
    assert_eq!(answer.json["checkpoint"], log.checkpoint().to_string());
    // The key is in the state now.
    let again = files.run(&["audit", "--log", "log", "--state", "state"]);
    assert_eq!(again.is(0, "good", "").json["new"], 0);
    for (round, size) in [1002_u64, 1024, 1025, 1300, 2048].into_iter().enumerate() {
        let tags = log.size()..size;
        append(&mut log, tags);
        write_log(&files.path("log"), &log, &log.checkpoint());
        let answer = files.audit(&log);
        assert_eq!(answer.is(0, "good", "").json["size"], size, "{round}");
    }
    let text = files.command(&["audit", "--log", "log", "--state", "state"]).output().unwrap();
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.starts_with("good: no tag repeats"), "{text}");
    assert!(text.contains("\nsize: 2048\n"), "{text}");
}

/// Two indexes with one tag, in one audit or in two.
#[rstest]
#[case(&[7, 600], 1000)]
#[case(&[0], 3)]
#[case(&[999], 1000)]
fn a_repeated_tag_is_proven(#[case] repeated: &[u64], #[case] first_audit: u64) {
    let files = Files::new();
    let mut log = log(&files, first_audit);
    files.audit(&log).is(0, "good", "");
    append(&mut log, 2000..2300);
    for tag in repeated {
        let mut again = leaf(*tag);
        again[64] ^= 1;
        log.append(&[again]);
    }
    write_log(&files.path("log"), &log, &log.checkpoint());
    let answer = files.audit(&log);
    answer.is(1, "misbehaviour", "a tag repeats");
    let key = log.key.verifier().to_string();
    let evidence = answer.json["evidence"].as_str().unwrap();
    let verified = files.run(&["evidence", evidence, "--vkey", &key]);
    verified.is(1, "misbehaviour", "one tag");
    assert_eq!((verified.json["kind"].as_u64(), verified.json["name"].as_str()), (Some(1), Some("tag-repeated")));
    let other = Log::new(2).key.verifier().to_string();
    files.run(&["evidence", evidence, "--vkey", &other]).is(3, "cannot-tell", "no key of the log");
    // It is found again: the state stays before it.
    files.audit(&log).is(1, "misbehaviour", "a tag repeats");
    // An audit that begins later finds it, too.
    fs::remove_dir_all(files.path("state")).unwrap();
    files.audit(&log).is(1, "misbehaviour", "a tag repeats");
}

/// A server prunes old entries and keeps all hashes. An audit that begins later reads what is there, and says from where on.
#[test]
fn a_pruned_log_is_audited_from_its_first_entry() {
    let files = Files::new();
    let mut log = log(&files, 256 * 300);
    let old_audit = files.run(&["audit", "--log", "log", "--state", "old", "--vkey", &log.key.verifier().to_string()]);
    old_audit.is(0, "good", "");
    let bundle = |index: usize| files.path("log").join(format!("tile/entries/{index:03}"));
    for index in 0..270 {
        fs::remove_file(bundle(index)).unwrap();
    }
    let answer = files.audit(&log);
    answer.is(0, "good", "no tag repeats");
    assert_eq!((answer.json["first"].as_u64(), answer.json["new"].as_u64()), (Some(270 * 256), Some(30 * 256 + 1)));
    // What repeats a tag that was read is found, also in the next run; what repeats a pruned one is not.
    let again = |tag: u64| {
        let mut again = leaf(tag);
        again[64] ^= 1;
        again
    };
    log.append(&[again(7)]);
    write_log(&files.path("log"), &log, &log.checkpoint());
    for index in 0..270 {
        fs::remove_file(bundle(index)).unwrap();
    }
    assert_eq!(files.audit(&log).is(0, "good", "").json["first"], 270 * 256);
    log.append(&[again(271 * 256)]);
    write_log(&files.path("log"), &log, &log.checkpoint());
    files.audit(&log).is(1, "misbehaviour", "a tag repeats");
}

/// Only the beginning of a log can be pruned.
#[rstest]
#[case::a_hole(&[0, 2])]
#[case::what_is_new(&[0, 1, 2, 3])]
fn entries_that_are_kept_back_are_noticed(#[case] kept_back: &[usize]) {
    let files = Files::new();
    let log = log(&files, 256 * 3 + 9);
    for index in kept_back {
        let name = if *index == 3 { "003.p/10".to_owned() } else { format!("{index:03}") };
        fs::remove_file(files.path("log").join(format!("tile/entries/{name}"))).unwrap();
    }
    files.audit(&log).is(3, "cannot-tell", "missing");
}

/// Equal first 8 bytes are no equal tags.
#[test]
fn tags_are_compared_in_full() {
    let files = Files::new();
    let mut log = log(&files, 300);
    let mut similar = leaf(5);
    similar[9] ^= 1;
    log.append(&[similar]);
    write_log(&files.path("log"), &log, &log.checkpoint());
    files.audit(&log).is(0, "good", "");
    append(&mut log, 1000..1600);
    write_log(&files.path("log"), &log, &log.checkpoint());
    files.audit(&log).is(0, "good", "");
}

/// A log hides a repeated tag behind random leaves that begin as it does.
#[test]
fn decoys_do_not_hide_a_repeated_tag() {
    let files = Files::new();
    let mut log = log(&files, 300);
    let mut decoy = leaf(5);
    decoy[40] ^= 1;
    for byte in 10..20 {
        decoy[byte] ^= 1;
        log.append(&[decoy.clone()]);
    }
    let mut again = leaf(5);
    again[64] ^= 1;
    log.append(&[again]);
    for byte in 10..20 {
        decoy[byte] ^= 2;
        log.append(&[decoy.clone()]);
    }
    write_log(&files.path("log"), &log, &log.checkpoint());
    files.audit(&log).is(1, "misbehaviour", "a tag repeats");
}

#[rstest]
fn a_fork_is_proven(#[values(400, 512, 1001)] seen: u64, #[values(0, 1, 700)] more: u64) {
    let files = Files::new();
    let log = log(&files, seen - 1);
    files.audit(&log).is(0, "good", "");
    let mut other = Log::new(1);
    append(&mut other, 5000..5000 + seen + more);
    fs::remove_dir_all(files.path("log")).unwrap();
    write_log(&files.path("log"), &other, &other.checkpoint());
    let answer = files.audit(&log);
    answer.is(1, "misbehaviour", "two histories");
    let evidence = answer.json["evidence"].as_str().unwrap();
    let verified = files.run(&["evidence", evidence, "--vkey", &log.key.verifier().to_string()]);
    assert_eq!(verified.is(1, "misbehaviour", "").json["name"], "fork");
}

#[test]
fn an_older_checkpoint_proves_nothing() {
    let files = Files::new();
    let mut log = log(&files, 500);
    let old = log.checkpoint();
    append(&mut log, 600..900);
    write_log(&files.path("log"), &log, &log.checkpoint());
    files.audit(&log).is(0, "good", "");
    files.write("log/checkpoint", old.to_string());
    files.audit(&log).is(3, "cannot-tell", "older checkpoint");
    files.write("log/checkpoint", log.checkpoint().to_string());
    files.audit(&log).is(0, "good", "");
}

/// What is not signed proves nothing, and leaves the state as it was: after a repair the audit goes on.
#[rstest]
#[case("tile/entries/002", "do not have the hashes|does not have the hashes|are not those")]
#[case("tile/0/002", "does not have the hashes|do not lead")]
#[case("tile/0/004.p/1", "do not lead")]
#[case("tile/1/000.p/4", "do not lead")]
fn a_changed_file_is_named(#[case] file: &str, #[case] words: &str, #[values(true, false)] from_the_start: bool) {
    let files = Files::new();
    let mut log = log(&files, 299);
    if !from_the_start {
        files.audit(&log).is(0, "good", "");
    }
    append(&mut log, 400..1125);
    write_log(&files.path("log"), &log, &log.checkpoint());
    let path = files.path("log").join(file);
    let good = fs::read(&path).unwrap();
    let mut changed = good.clone();
    changed[21] ^= 1;
    fs::write(&path, &changed).unwrap();
    let answer = files.audit(&log);
    let reason = answer.is(3, "cannot-tell", "").json["reason"].as_str().unwrap();
    assert!(words.split('|').any(|words| reason.contains(words)), "{reason}");
    fs::write(&path, &good[..good.len() - 1]).unwrap();
    files.audit(&log).is(3, "cannot-tell", "");
    fs::remove_file(&path).unwrap();
    files.audit(&log).is(3, "cannot-tell", "is missing");
    fs::write(&path, good).unwrap();
    assert_eq!(files.audit(&log).is(0, "good", "").json["size"], 1025);
}

/// A log may delete a partial tile once the full one is there.
#[test]
fn a_full_tile_stands_for_a_partial_one() {
    let files = Files::new();
    let mut log = log(&files, 999);
    let checkpoint = log.checkpoint();
    append(&mut log, 2000..2024);
    write_log(&files.path("log"), &log, &checkpoint);
    for kind in ["0", "entries"] {
        let directory = files.path("log").join(format!("tile/{kind}"));
        fs::remove_dir_all(directory.join("003.p")).unwrap();
        assert!(directory.join("003").exists());
    }
    assert_eq!(files.audit(&log).is(0, "good", "").json["size"], 1000);
    files.write("log/checkpoint", log.checkpoint().to_string());
    assert_eq!(files.audit(&log).is(0, "good", "").json["size"], 1024);
}

/// A bundle that was changed together with its tile does not get into a state that is saved on the way.
#[test]
fn a_bundle_that_was_changed_with_its_tile_is_not_saved() {
    let files = Files::new();
    let log = log(&files, 3000);
    let [bundle, tile] = ["tile/entries/000", "tile/0/000"].map(|name| files.path("log").join(name));
    let good = [fs::read(&bundle).unwrap(), fs::read(&tile).unwrap()];
    let mut changed = good.clone();
    *changed[0].last_mut().unwrap() ^= 1;
    let entries = keypool_transparency::tile::exact_bundle(&changed[0], 256).unwrap();
    changed[1] = keypool_transparency::tile::entry_hashes(&entries).concat();
    fs::write(&bundle, &changed[0]).unwrap();
    fs::write(&tile, &changed[1]).unwrap();
    let key = log.key.verifier().to_string();
    let audit = ["audit", "--log", "log", "--state", "state", "--vkey", &key, "--batch", "100"];
    files.run(&audit).is(3, "cannot-tell", "");
    fs::write(&bundle, &good[0]).unwrap();
    fs::write(&tile, &good[1]).unwrap();
    assert_eq!(files.run(&audit).is(0, "good", "").json["size"], 3001);
}

#[test]
fn a_checkpoint_of_another_key_is_refused() {
    let files = Files::new();
    let log = log(&files, 10);
    let thief = SignerKey::new(log.name(), &[9; 32]).unwrap();
    write_log(&files.path("log"), &log, &log.checkpoint_at(11).sign(&thief).unwrap());
    files.audit(&log).is(3, "cannot-tell", "has not signed");
    files.write("log/checkpoint", "no checkpoint");
    files.audit(&log).is(3, "cannot-tell", "the checkpoint: note:");
    fs::remove_file(files.path("log/checkpoint")).unwrap();
    files.audit(&log).is(3, "cannot-tell", "checkpoint is missing");
}

#[test]
fn a_state_is_of_one_log_and_one_process() {
    let files = Files::new();
    let log = log(&files, 10);
    files.run(&["audit", "--log", "log", "--state", "state"]).is(2, "cannot-tell", "--vkey or --policy");
    files.audit(&log).is(0, "good", "");
    let other = origin(1).key(&[8; 32]).unwrap().verifier().to_string();
    let audit = ["audit", "--log", "log", "--state", "state", "--vkey", &other];
    files.run(&audit).is(3, "cannot-tell", "use another --state");
    let lock = fs::File::create(files.path("state/lock")).unwrap();
    lock.lock().unwrap();
    files.audit(&log).is(3, "cannot-tell", "in use");
    drop(lock);
    let tags = fs::read_dir(files.path("state")).unwrap().filter_map(|file| {
        let path = file.unwrap().path();
        path.file_name().unwrap().to_string_lossy().starts_with("tags-").then_some(path)
    });
    fs::write(tags.last().unwrap(), b"short").unwrap();
    files.audit(&log).is(3, "cannot-tell", "another length");
    files.write("state/state.json", "{}");
    files.audit(&log).is(3, "cannot-tell", "missing field");
}

/// Entries of no known form are counted, and their tags are none.
#[test]
fn unknown_entries_are_counted() {
    let files = Files::new();
    let mut log = log(&files, 20);
    log.append(&[vec![3; 65], vec![1; 64], b"\x02other\n".to_vec(), Vec::new()]);
    write_log(&files.path("log"), &log, &log.checkpoint());
    assert_eq!(files.audit(&log).is(0, "good", "").json["unknown_entries"], 4);
    assert!(Leaf::from_bytes(&[1; 64]).is_err());
}

/// An audit that goes on outlives a log that is away, and ends when it has proof.
#[test]
fn an_audit_goes_on_until_something_is_proven() {
    let files = Files::new();
    let mut log = Log::new(1);
    append(&mut log, 0..300);
    let key = log.key.verifier().to_string();
    let audit = ["audit", "--log", "log", "--state", "state", "--vkey", &key, "--every", "1", "--json"];
    let mut child = files.command(&audit).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let mut until = |result: &str| {
        let line = lines.find(|line| line.contains(&format!("\"result\":\"{result}\"")));
        line.unwrap_or_default()
    };
    assert!(until("cannot-tell").contains("checkpoint is missing"));
    write_log(&files.path("log"), &log, &log.checkpoint());
    assert!(until("good").contains("\"size\":300"));
    let mut again = leaf(7);
    again[64] ^= 1;
    log.append(&[again]);
    write_log(&files.path("log"), &log, &log.checkpoint());
    assert!(until("misbehaviour").contains("a tag repeats"));
    assert_eq!(child.wait().unwrap().code(), Some(1));
}

/// Killed again and again at any moment, it goes on where it was and finds the same.
#[test]
fn an_audit_can_be_killed_at_any_moment() {
    let files = Files::new();
    let mut log = log(&files, 60_000);
    let mut again = leaf(123);
    again[64] ^= 1;
    let key = log.key.verifier().to_string();
    let audit = ["audit", "--log", "log", "--state", "state", "--vkey", &key, "--batch", "1000", "--json"];
    let (mut kills, mut delay) = (0, 1_u64);
    let finished = loop {
        let mut child = files.command(&audit).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let begin = Instant::now();
        while child.try_wait().unwrap().is_none() && begin.elapsed() < Duration::from_millis(delay) {
            sleep(Duration::from_millis(1));
        }
        if child.try_wait().unwrap().is_some() {
            break crate::program::Answer::of(&child.wait_with_output().unwrap());
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
        delay += 7;
    };
    assert!(kills > 5, "{kills}");
    assert_eq!(finished.is(0, "good", "").json["size"], 60_001);
    log.append(&[again]);
    write_log(&files.path("log"), &log, &log.checkpoint());
    files.run(&audit[..audit.len() - 1]).is(1, "misbehaviour", "a tag repeats");
}

/// Audits a log in a new state; gives the seconds, the most kilobytes of memory, and the bytes of the state.
fn measured(files: &Files, log: &Log) -> (f64, u64, u64) {
    let _ = fs::remove_dir_all(files.path("state"));
    let key = log.key.verifier().to_string();
    let begin = Instant::now();
    let mut child = files
        .command(&["audit", "--log", "log", "--state", "state", "--vkey", &key])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (status, mut memory) = (format!("/proc/{}/status", child.id()), 0);
    let ended = loop {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
        memory = line.trim().trim_end_matches(" kB").parse().unwrap_or(memory);
        if let Some(ended) = child.try_wait().unwrap() {
            break ended;
        }
        sleep(Duration::from_millis(2));
    };
    assert_eq!(ended.code(), Some(0));
    let state = fs::read_dir(files.path("state")).unwrap();
    (begin.elapsed().as_secs_f64(), memory, state.map(|file| file.unwrap().metadata().unwrap().len()).sum())
}

/// `cargo test --release -p keypool-verify -- --ignored --nocapture leaves_a_second`
#[test]
#[ignore = "measures"]
#[expect(clippy::print_stdout, clippy::cast_precision_loss, reason = "this is the measurement")]
fn leaves_a_second() {
    const LEAVES: u64 = 5_000_000;
    let (files, log) = (Files::new(), Log::new(1));
    let mut appender = Appender::new();
    for begin in (0..LEAVES).step_by(100_000) {
        let entries: Vec<_> = (begin..begin + 100_000).map(leaf).collect();
        log.store.write(appender.append(&entries).unwrap().tiles);
    }
    let checkpoint = log.checkpoint_at(LEAVES).sign(&log.key).unwrap();
    write_log_of(&files.path("log"), &log, LEAVES, &checkpoint);
    for _ in 0..3 {
        let (seconds, memory, state) = measured(&files, &log);
        let rate = LEAVES as f64 / seconds;
        println!(
            "{LEAVES} leaves in {seconds:.2} s: {rate:.0} a second, {memory} kB of memory, {state} bytes of state"
        );
    }
}
