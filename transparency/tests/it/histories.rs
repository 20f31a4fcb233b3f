//! A log with two histories, and one that went back.

use keypool_transparency::{
    evidence::Kind,
    history::{Head, Succession, succession},
    leaf::{Kept, TextLeaf},
    policy::LogKeys,
    statement::Heir,
};

use crate::{lies::accepted, support::Log, world::Server};

/// Two clients are shown two histories. The larger log's tiles show that the smaller one is not its beginning.
#[test]
fn a_fork_is_proven_by_two_clients_who_compare() {
    let mut server = Server::new(1, 0);
    server.log.append(&[[1; 65]; 40]);
    let mut other = Log { ..server.log.clone() };
    for (small, large) in [(0, 1), (1, 1), (24, 24), (88, 150)] {
        server.log.append(&vec![[2; 65]; small]);
        other.append(&vec![[3; 65]; large]);
        let (one, two) = (server.log.checkpoint(), other.checkpoint());
        let path = other.tree(other.size()).explicit_consistency(server.log.size()).unwrap();
        let keys = server.policy().log_keys();
        let verdict = succession(&one, &two, &path, &keys).unwrap();
        if small == 0 {
            let path = other.tree(other.size()).consistency(server.log.size()).unwrap();
            assert_eq!(succession(&one, &two, &path, &keys), Ok(Succession::Continues));
            assert_eq!(succession(&two, &one, &path, &keys), Ok(Succession::Older));
            assert_eq!(succession(&one, &two, &[], &keys), Ok(Succession::NotShown));
            continue;
        }
        let Succession::Forked(evidence) = verdict else { panic!("{verdict:?}") };
        accepted(&server, *evidence, Kind::Fork);
    }
}

/// A log that went back and went on differently contradicts what a client has kept; one that is only smaller proves nothing.
#[test]
fn a_rolled_back_log_is_a_fork_as_soon_as_it_grows_again() {
    let server = Server::new(1, 0);
    let mut log = server.log.clone();
    log.append(&[[1; 65]; 64]);
    let mut back = Log { ..log.clone() };
    log.append(&[[2; 65]; 30]);
    let (kept, keys) = (log.checkpoint(), server.policy().log_keys());
    assert_eq!(succession(&kept, &back.checkpoint(), &[], &keys), Ok(Succession::Older));
    back.append(&[[3; 65]; 48]);
    let path = back.tree(back.size()).explicit_consistency(log.size()).unwrap();
    let verdict = succession(&kept, &back.checkpoint(), &path, &keys).unwrap();
    let Succession::Forked(evidence) = verdict else { panic!("{verdict:?}") };
    accepted(&server, *evidence, Kind::Fork);
}

#[test]
fn checkpoints_of_two_logs_are_not_compared() {
    let [mut one, mut two] = [1, 2].map(Log::new);
    one.append(&[[1; 65]; 5]);
    two.append(&[[2; 65]; 5]);
    let keys = [&one, &two].iter().map(|log| log.key.verifier().clone()).collect();
    assert_eq!(succession(&one.checkpoint(), &two.checkpoint(), &[], &keys), Ok(Succession::OtherLog));
    let keys = [one.key.verifier().clone()].into_iter().collect();
    assert!(succession(&one.checkpoint(), &two.checkpoint(), &[], &keys).is_err());
    assert_eq!(succession(&one.checkpoint(), &one.checkpoint(), &[], &keys), Ok(Succession::Continues));
}

/// A log that continues the beginning of another one.
fn heir_of(old: &Log, kept: u64, k: u32) -> (Log, TextLeaf) {
    let mut log = Log::new(k);
    let kept = Kept { origin: old.name().to_owned(), size: kept, root: old.root(kept) };
    let entry = TextLeaf::Origin { name: log.name().to_owned(), kept: Some(kept) };
    log.append(&[entry.to_bytes()]);
    log.append(&[[9; 65]; 16]);
    (log, entry)
}

fn first_path(log: &Log, size: u64) -> Vec<[u8; 32]> {
    log.tree(size).inclusion(0).unwrap()
}

#[test]
fn a_head_leads_from_an_ended_log_to_the_newest_one() {
    let mut one = Log::new(1);
    one.append(&[[1; 65]; 11]);
    let small = one.checkpoint();
    one.append(&[[2; 65]; 30]);
    let (two, second) = heir_of(&one, 40, 2);
    let (three, third) = heir_of(&two, 15, 3);
    let keys: LogKeys = [&one, &two, &three].iter().map(|log| log.key.verifier().clone()).collect();
    let heirs = vec![
        Heir { entry: second, path: first_path(&two, 15) },
        Heir { entry: third, path: first_path(&three, three.size()) },
    ];
    let consistency = one.tree(40).consistency(11).unwrap();
    let head = Head { checkpoint: three.checkpoint(), consistency, heirs };
    assert_eq!(head.succession(&small, &keys), Ok(Succession::Continues));
    assert_eq!(head.succession(&one.checkpoint(), &keys), Ok(Succession::Shortened { kept: 40 }));
    let one_heir = Head { heirs: head.heirs[1..].to_vec(), consistency: Vec::new(), ..head.clone() };
    assert_eq!(one_heir.succession(&two.checkpoint_at(15).sign(&two.key).unwrap(), &keys), Ok(Succession::Continues));
    assert_eq!(one_heir.succession(&two.checkpoint(), &keys), Ok(Succession::Shortened { kept: 15 }));
    // Each part is needed.
    let without = |change: fn(&mut Head)| {
        let mut changed = head.clone();
        change(&mut changed);
        changed.succession(&small, &keys)
    };
    assert_eq!(without(|head| head.heirs.clear()), Ok(Succession::OtherLog));
    let broken: [fn(&mut Head); 6] = [
        |head| head.consistency.clear(),
        |head| head.consistency[0][0] ^= 1,
        |head| drop(head.heirs.remove(0)),
        |head| drop(head.heirs.pop()),
        |head| head.heirs.swap(0, 1),
        |head| head.heirs[1].path[0][0] ^= 1,
    ];
    for change in broken {
        assert_eq!(without(change), Ok(Succession::NotShown));
    }
    let unknown: LogKeys = [one.key.verifier().clone()].into_iter().collect();
    assert!(head.succession(&small, &unknown).is_err());
}
