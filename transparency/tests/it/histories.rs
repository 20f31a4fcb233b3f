//! A log with two histories, and one that went back.

use keypool_transparency::{
    evidence::Kind,
    history::{Succession, succession},
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
