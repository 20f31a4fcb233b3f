//! Verifies evidence by a policy.

use crate::{
    checkpoint::BadNote,
    commitment::{Details, Event, Opening, WrongOpening},
    encoding::{Hash, Malformed},
    evidence::{Evidence, EvidenceFile, Kind},
    leaf::Leaf,
    merkle::{empty_root, root, roots_from_consistency},
    note::Note,
    origin::BadKeyNote,
    package::Step,
    policy::{LogKeys, Policy},
    receipt::Promise,
    statement::{BadStatement, Stated, Statement},
};

/// Clocks of a server's machines and of its witnesses may differ by this many seconds.
pub const CLOCK_TOLERANCE: u64 = 10;

/// The seconds between the two checkpoints that lack a promised leaf.
const DAY: u64 = 86_400;

/// What a verifier says of evidence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The server did it.
    Proven(Kind),
    /// The evidence proves nothing.
    Invalid(Invalid),
    /// The verifier's policy, or the file, lacks something.
    CannotTell(Doubt),
}

/// Why evidence proves nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Invalid {
    #[error(transparent)]
    Note(#[from] BadNote),
    #[error(transparent)]
    KeyNote(#[from] BadKeyNote),
    #[error(transparent)]
    Statement(#[from] BadStatement),
    #[error(transparent)]
    Opening(#[from] WrongOpening),
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("the statements are of different logs")]
    DifferentLogs,
    #[error("the statements have different tags")]
    DifferentTags,
    #[error("the statements do not contradict each other")]
    NoContradiction,
    #[error("the consistency path does not yield the larger root")]
    WrongPath,
    #[error("the sizes are not in the order that this evidence needs")]
    WrongSizes,
    #[error("the event is another one than this evidence needs")]
    OtherEvent,
    #[error("the later hand-out is not later")]
    NotLater,
    #[error("the reservation did not lapse early")]
    NotEarly,
    #[error("the receipt does not deny the tag")]
    NotDenied,
    #[error("the leaf is not below the receipt's size in the log itself")]
    NotBelow,
    #[error("the opening lacks its actor")]
    NoActor,
    #[error("the receipt is to the actor")]
    SameActor,
    #[error("the leaf's hash is in the tree")]
    NotMissing,
}

/// Why a verifier cannot tell.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Doubt {
    #[error("the policy has no key of the log {0}: add it, or the key notes that lead to it")]
    UnknownLog(String),
    #[error("only witnesses can vouch for a time, and the policy names none")]
    NoWitnesses,
    #[error("too few of the policy's witnesses have cosigned at the times that this evidence needs")]
    NoQuorum,
}

type Check = Result<Kind, Outcome>;

impl<E: Into<Invalid>> From<E> for Outcome {
    fn from(error: E) -> Self {
        let invalid = error.into();
        match invalid {
            Invalid::Note(BadNote::UnknownLog(log))
            | Invalid::Statement(BadStatement::Note(BadNote::UnknownLog(log)))
            | Invalid::KeyNote(BadKeyNote::Unknown(log)) => Self::CannotTell(Doubt::UnknownLog(log)),
            invalid => Self::Invalid(invalid),
        }
    }
}

fn ensure(condition: bool, otherwise: Invalid) -> Result<(), Outcome> {
    if condition { Ok(()) } else { Err(Outcome::Invalid(otherwise)) }
}

/// Checks an accusation. It believes nothing that an accuser can invent.
#[must_use]
pub fn verify(file: &EvidenceFile, policy: &Policy) -> Outcome {
    let mut keys = policy.log_keys();
    let mut check_file = || {
        for note in &file.key_notes {
            keys.follow(note)?;
        }
        check(&file.evidence, &keys, policy)
    };
    check_file().map_or_else(|outcome| outcome, Outcome::Proven)
}

fn check(evidence: &Evidence, keys: &LogKeys, policy: &Policy) -> Check {
    match evidence {
        Evidence::TagRepeated { one, other } => tag_repeated(&one.verify(keys)?, &other.verify(keys)?),
        Evidence::Fork { smaller, larger, path } => fork(smaller, larger, path, keys),
        Evidence::HandedOutAfterEnd { end, details, open, later } => {
            handed_out_after_end(&end.verify(keys)?, details, &open.verify(keys)?, *later)
        }
        Evidence::LapsedEarly { open, open_details, end, end_details, next } => {
            let until = lapsed(&open.verify(keys)?, open_details, &end.verify(keys)?, end_details)?;
            was_early(until, open_details, end, next.as_ref(), keys, policy)
        }
        Evidence::FalseNone { receipt, leaf } => false_none(receipt, &leaf.verify(keys)?, keys),
        Evidence::OtherActor { receipt, leaf, opening } => other_actor(receipt, leaf, opening, keys),
        Evidence::LeafMissing { receipt, leaf, smaller, larger, leaf_hashes } => {
            check_times(receipt, leaf, (smaller, larger), keys, policy)?;
            is_missing(leaf, (smaller, larger), leaf_hashes, keys)
        }
    }
}

fn tag_repeated(one: &Stated, other: &Stated) -> Check {
    ensure(one.origin == other.origin, Invalid::DifferentLogs)?;
    ensure(one.leaf.tag() == other.leaf.tag(), Invalid::DifferentTags)?;
    let at_two_places = one.place.is_some() && other.place.is_some() && one.place != other.place;
    ensure(one.leaf != other.leaf || at_two_places, Invalid::NoContradiction)?;
    Ok(Kind::TagRepeated)
}

fn fork(smaller: &Note, larger: &Note, path: &[Hash], keys: &LogKeys) -> Check {
    let (smaller, larger) = (keys.checkpoint(smaller)?, keys.checkpoint(larger)?);
    ensure(smaller.origin == larger.origin, Invalid::DifferentLogs)?;
    ensure(smaller.size <= larger.size, Invalid::WrongSizes)?;
    let expected = match smaller.size {
        size if size == larger.size => larger.root,
        0 => empty_root(),
        size => {
            let (old, new) = roots_from_consistency(size, larger.size, path)
                .filter(|(_, new)| *new == larger.root)
                .ok_or(Invalid::WrongPath)?;
            debug_assert_eq!(new, larger.root);
            old
        }
    };
    ensure(smaller.root != expected, Invalid::NoContradiction)?;
    Ok(Kind::Fork)
}

fn handed_out_after_end(end: &Stated, details: &Details, open: &Stated, later: u32) -> Check {
    ensure(end.origin == open.origin, Invalid::DifferentLogs)?;
    details.open(&end.leaf, &Step::End(details.n))?;
    ensure(matches!(details.event, Event::Spend | Event::Revoke), Invalid::OtherEvent)?;
    ensure(open.leaf.tag() == Step::Open(later).tag(&details.package), Invalid::DifferentTags)?;
    ensure(later > details.n, Invalid::NotLater)?;
    Ok(Kind::HandedOutAfterEnd)
}

/// Until when a reservation that lapsed should have held.
fn lapsed(open: &Stated, open_details: &Details, end: &Stated, end_details: &Details) -> Result<u64, Outcome> {
    ensure(open.origin == end.origin, Invalid::DifferentLogs)?;
    open_details.open(&open.leaf, &Step::Open(open_details.n))?;
    end_details.open(&end.leaf, &Step::End(end_details.n))?;
    let is_one = open_details.package == end_details.package && open_details.n == end_details.n;
    ensure(is_one, Invalid::DifferentTags)?;
    ensure(end_details.event == Event::Lapse, Invalid::OtherEvent)?;
    Ok(open_details.until)
}

fn was_early(
    until: u64,
    open: &Details,
    end: &Statement,
    next: Option<&Statement>,
    keys: &LogKeys,
    policy: &Policy,
) -> Check {
    let is_early = |time: u64| time.saturating_add(CLOCK_TOLERANCE) < until;
    if let Some(next) = next {
        let stated = next.verify(keys)?;
        ensure(stated.origin == end.verify(keys)?.origin, Invalid::DifferentLogs)?;
        let tag = Step::Open(open.n.saturating_add(1)).tag(&open.package);
        ensure(stated.leaf.tag() == tag, Invalid::DifferentTags)?;
        ensure(stated.promised.is_some_and(is_early), Invalid::NotEarly)?;
        return Ok(Kind::LapsedEarly);
    }
    let Statement::Included { checkpoint, .. } = end else { return Err(Invalid::NotEarly.into()) };
    match policy.has_quorum(checkpoint, is_early) {
        true => Ok(Kind::LapsedEarly),
        false if policy.requires_witnesses() => Err(Outcome::CannotTell(Doubt::NoQuorum)),
        false => Err(Outcome::CannotTell(Doubt::NoWitnesses)),
    }
}

fn false_none(receipt: &str, leaf: &Stated, keys: &LogKeys) -> Check {
    let receipt = keys.receipt(receipt)?;
    ensure(receipt.origin == leaf.origin, Invalid::DifferentLogs)?;
    ensure(receipt.promises.contains(&Promise::None(leaf.leaf.tag())), Invalid::NotDenied)?;
    ensure(leaf.is_below(receipt.size), Invalid::NotBelow)?;
    Ok(Kind::FalseReceipt)
}

fn other_actor(receipt: &str, leaf: &Leaf, opening: &Opening, keys: &LogKeys) -> Check {
    let receipt = keys.receipt(receipt)?;
    ensure(receipt.has_leaf(leaf), Invalid::Statement(BadStatement::NotInReceipt))?;
    let actor = opening.actor.as_ref().ok_or(Invalid::NoActor)?;
    opening.open(leaf, &opening.step_of(leaf).ok_or(WrongOpening::Tag)?)?;
    ensure(actor.actor != receipt.to, Invalid::SameActor)?;
    Ok(Kind::FalseReceipt)
}

/// Checks that a quorum cosigned both checkpoints, a day apart, and that both are later than the receipt.
fn check_times(
    receipt: &str,
    leaf: &Leaf,
    (smaller, larger): (&Note, &Note),
    keys: &LogKeys,
    policy: &Policy,
) -> Result<(), Outcome> {
    let receipt = keys.receipt(receipt)?;
    ensure(receipt.has_leaf(leaf), Invalid::Statement(BadStatement::NotInReceipt))?;
    let (small, large) = (keys.checkpoint(smaller)?, keys.checkpoint(larger)?);
    ensure(small.origin == receipt.origin && large.origin == receipt.origin, Invalid::DifferentLogs)?;
    ensure(receipt.size < small.size && small.size < large.size, Invalid::WrongSizes)?;
    if !policy.requires_witnesses() {
        return Err(Outcome::CannotTell(Doubt::NoWitnesses));
    }
    let first = policy.quorum_time(smaller).ok_or(Outcome::CannotTell(Doubt::NoQuorum))?;
    let is_later = policy.has_quorum(smaller, |time| time >= receipt.time)
        && policy.has_quorum(larger, |time| time >= first.saturating_add(DAY));
    if is_later { Ok(()) } else { Err(Outcome::CannotTell(Doubt::NoQuorum)) }
}

fn is_missing(leaf: &Leaf, (smaller, larger): (&Note, &Note), leaf_hashes: &[u8], keys: &LogKeys) -> Check {
    let (hashes, []) = leaf_hashes.as_chunks() else { return Err(Invalid::WrongSizes.into()) };
    let hash = leaf.hash();
    for note in [smaller, larger] {
        let checkpoint = keys.checkpoint(note)?;
        let size = usize::try_from(checkpoint.size).map_err(|_| Invalid::WrongSizes)?;
        let hashes = hashes.get(..size).ok_or(Invalid::WrongSizes)?;
        ensure(root(hashes) == checkpoint.root, Invalid::WrongPath)?;
        ensure(!hashes.contains(&hash), Invalid::NotMissing)?;
    }
    Ok(Kind::LeafMissing)
}
