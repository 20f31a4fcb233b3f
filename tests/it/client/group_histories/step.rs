//! What happens in a history: chosen at random from its seed.

use rand::{RngExt, SeedableRng, rngs::StdRng};

/// The devices. Two users have two each.
pub const DEVICES: [(&str, &str); 8] = [
    ("alice", "laptop"),
    ("alice", "phone"),
    ("bob", "laptop"),
    ("bob", "phone"),
    ("carol", "laptop"),
    ("dave", "laptop"),
    ("erin", "laptop"),
    ("frank", "laptop"),
];

pub const GROUPS: usize = 3;

/// The devices that make the groups, and those whose users they invite at first.
pub const FOUNDERS: [(usize, [usize; 2]); GROUPS] = [(0, [2, 4]), (2, [5, 6]), (4, [0, 7])];

/// The devices that are registered later, if at all.
pub const LATE: [usize; 2] = [1, 3];

/// Something that a device does, or that happens to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// It invites the user of this device.
    Invite(usize),
    /// It removes this device.
    Remove(usize),
    Leave,
    Update,
    Send,
    Receive,
    Refresh,
    /// It comes back by an external Commit, if it has to.
    ComeBack,
    /// It loses all its data, and is registered anew under its name.
    Reinstall,
    /// Its user removes it from the server, and nobody uses it any more.
    Abandon,
    BackUp,
    /// Its data is again that of the last backup.
    Restore,
    /// All that is in its queue is lost.
    LoseQueue,
    /// The server is killed, and starts again.
    KillServer,
}

/// What goes wrong with a request.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// It does not arrive, and is repeated.
    Lost,
    /// Its answer does not arrive, and it is repeated.
    LostAnswer,
    /// The device's program ends before it is sent.
    CrashBefore,
    /// The device's program ends before it has the answer.
    CrashAfter,
    /// The server is killed meanwhile, and starts again.
    ServerDies,
}

/// One step of a history.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// The device: the one with this number among the members of the group, counted around.
    pub by: usize,
    pub group: usize,
    pub what: What,
    /// The request of the step, from 0, with which something goes wrong.
    pub fault: Option<(usize, Fault)>,
    /// What another device does in the group at the same time.
    pub beside: Option<(usize, What)>,
}

/// The steps of the history with this seed.
pub fn steps(seed: u64) -> Vec<Step> {
    let mut rng = StdRng::seed_from_u64(seed);
    let count = rng.random_range(6..=12);
    (0..count).map(|_| step(&mut rng)).collect()
}

fn step(rng: &mut StdRng) -> Step {
    let (by, group) = (rng.random_range(0..DEVICES.len()), rng.random_range(0..GROUPS));
    let other = rng.random_range(0..DEVICES.len());
    let what = match rng.random_range(0..64) {
        0..10 => What::Invite(other),
        10..16 => What::Remove(other),
        16..20 => What::Leave,
        20..28 => What::Update,
        28..36 => What::Send,
        36..42 => What::Receive,
        42..44 => What::Refresh,
        44..46 => What::ComeBack,
        46..51 => What::Reinstall,
        51..52 => What::Abandon,
        52..54 => What::BackUp,
        54..58 => What::Restore,
        58..63 => What::LoseQueue,
        _ => What::KillServer,
    };
    let fault = rng.random_bool(0.15).then(|| {
        let fault = match rng.random_range(0..16) {
            0..3 => Fault::Lost,
            3..7 => Fault::LostAnswer,
            7..11 => Fault::CrashBefore,
            11..15 => Fault::CrashAfter,
            _ => Fault::ServerDies,
        };
        (rng.random_range(0..6), fault)
    });
    let quiet = [What::Update, What::Send, What::Receive, What::ComeBack];
    let beside = (fault.is_none() && rng.random_bool(0.25)).then(|| (other, quiet[rng.random_range(0..quiet.len())]));
    Step { by, group, what, fault, beside: beside.filter(|(other, _)| *other != by) }
}
