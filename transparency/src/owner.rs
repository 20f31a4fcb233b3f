//! The owner's check: that its trail is what the log has, and that the log has nothing more.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use crate::{
    answers::{CheckedAnswers, Found},
    commitment::{Event, Opening},
    contradiction::Dossier,
    encoding::bytes,
    package::{PackageId, ReservationId, Step, Tag},
    policy::Policy,
    receipt::{Promise, Receipt},
    verdict::{Finding, Findings, Problem, StepText, Unknown, Verdict, opened},
};

/// A row of an owner's trail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrailRow {
    /// What happened.
    pub event: Event,
    /// The number of the hand-out; `None` for a last resort.
    pub n: Option<u32>,
    /// When it happened, in Unix seconds.
    pub at: u64,
    /// The device that holds or held the reservation, `user/device`; empty where nobody does.
    pub actor: String,
    /// With a spend, the group for which it is; else empty, since the server does not tell.
    #[serde(with = "bytes")]
    pub group_id: Vec<u8>,
    /// The reservation; zero where there is none.
    pub reservation_id: ReservationId,
}

/// A Welcome that used a package.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Welcome {
    /// The device that sent it, `user/device`.
    pub sender: String,
    /// Its group.
    #[serde(with = "bytes")]
    pub group_id: Vec<u8>,
}

/// What an owner knows of one of its packages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OwnPackage {
    /// The package.
    pub package: PackageId,
    /// The owner itself, `user/device`.
    pub owner: String,
    /// The rows of its trail about the package, the oldest first. Older ones may have been forgotten.
    pub rows: Vec<TrailRow>,
    /// The size of the log that the server gave with the trail. The server reads it before the rows, so the trail has all
    /// leaves below it.
    pub as_of: u64,
    /// The Welcomes that used it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub welcomes: Vec<Welcome>,
    /// Receipts that the server gave about it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub receipts: Vec<String>,
}

impl TrailRow {
    /// The step that it is of.
    #[must_use]
    pub fn step(&self) -> Step {
        match (self.event, self.n) {
            (Event::Reserve, Some(n)) => Step::Open(n),
            (Event::Reserve, None) => Step::Use(self.reservation_id),
            (_, Some(n)) => Step::End(n),
            (_, None) => Step::Used(self.reservation_id),
        }
    }
}

impl OwnPackage {
    /// The steps that the owner has to ask the server about, each once: those of its trail, and the next ones, which
    /// have not happened.
    #[must_use]
    pub fn steps(&self) -> Vec<Step> {
        let (mut all, mut seen) = (Vec::new(), HashSet::new());
        all.extend(self.rows.iter().map(TrailRow::step).chain(self.next_steps()).filter(|step| seen.insert(*step)));
        all
    }

    /// The steps that would follow the last numbered row.
    fn next_steps(&self) -> Vec<Step> {
        let last = self.rows.iter().rev().find_map(|row| Some((row.event, row.n?)));
        let is_last_resort = self.rows.iter().any(|row| row.n.is_none());
        match last {
            None if is_last_resort => Vec::new(),
            None => vec![Step::Open(0), Step::End(0)],
            Some((Event::Reserve, n)) => vec![Step::End(n), Step::Open(n.saturating_add(1))],
            Some((_, n)) => vec![Step::Open(n.saturating_add(1)), Step::End(n.saturating_add(1))],
        }
    }

    /// Whether the hand-out of a row was spent.
    fn is_spent(&self, row: &TrailRow) -> bool {
        let is_of_it = |other: &TrailRow| (other.n, other.reservation_id) == (row.n, row.reservation_id);
        self.rows.iter().any(|other| other.event == Event::Spend && is_of_it(other))
    }

    fn tags(&self) -> Vec<Tag> {
        self.steps().iter().map(|step| step.tag(&self.package)).collect()
    }

    /// What the owner holds about the package: for evidence, and for adders who bring theirs.
    #[must_use]
    pub fn dossier(&self, answers: &CheckedAnswers<'_>) -> Dossier {
        let mut dossier = Dossier { receipts: self.receipts.clone(), ..Dossier::default() };
        dossier.add_answers(answers, &self.tags());
        dossier
    }
}

/// Checks one package with the answers about its [`OwnPackage::steps`].
#[must_use]
pub fn check(own: &OwnPackage, answers: &CheckedAnswers<'_>, policy: &Policy) -> Verdict {
    let mut findings = Findings::default();
    findings.add(check_order(own));
    for row in &own.rows {
        findings.add(check_row(own, row, answers));
    }
    for step in own.next_steps() {
        findings.add(check_next(own, step, answers));
    }
    findings.add(check_receipts(own, answers));
    for welcome in &own.welcomes {
        findings.add(check_welcome(own, welcome));
    }
    findings.verdict(|| own.dossier(answers).evidence(&own.package, policy))
}

/// Numbered rows are open(n), end(n), open(n+1) and so on; a revoke at rest is end(n) alone; nothing follows a spend or a
/// revoke.
fn check_order(own: &OwnPackage) -> Result<(), Finding> {
    let mut before: Option<(Event, u32)> = None;
    for row in &own.rows {
        let Some(n) = row.n else { continue };
        let text = StepText(row.step());
        let fits = match before {
            None => true,
            Some((event @ (Event::Spend | Event::Revoke), n)) => {
                return Err(Problem::HandedOutAfter(StepText(Step::End(n)), event).into());
            }
            Some((Event::Reserve, open)) => row.event != Event::Reserve && n == open,
            Some((_, end)) => matches!(row.event, Event::Reserve | Event::Revoke) && n == end.saturating_add(1),
        };
        if !fits {
            return Err(Problem::OutOfOrder(text).into());
        }
        before = Some((row.event, n));
    }
    Ok(())
}

fn check_row(own: &OwnPackage, row: &TrailRow, answers: &CheckedAnswers<'_>) -> Result<(), Finding> {
    let text = StepText(row.step());
    let Opening { details, actor } = opened(answers, &own.package, row.step())?;
    // Before a spend, the server keeps the group from the owner, and with it the second level.
    if actor.is_none() && own.is_spent(row) {
        return Err(Finding::Unknown(Unknown::NoOpening(text)));
    }
    let first =
        [(details.event == row.event, "event"), (details.owner == own.owner, "owner"), (details.at == row.at, "time")];
    let second = actor.iter().flat_map(|actor| {
        [
            (actor.actor == row.actor, "actor"),
            // The trail names the group of a spend alone, and an adder may have reserved for another one.
            (row.event != Event::Spend || actor.group_id == row.group_id, "group"),
            (actor.reservation_id == row.reservation_id, "reservation"),
        ]
    });
    match first.into_iter().chain(second).find(|(is_equal, _)| !is_equal) {
        Some((_, what)) => Err(Problem::Differs(text, what).into()),
        None => Ok(()),
    }
}

/// A step after the last row has not happened, or happened after the trail was read.
fn check_next(own: &OwnPackage, step: Step, answers: &CheckedAnswers<'_>) -> Result<(), Finding> {
    let text = StepText(step);
    match answers.get(&step.tag(&own.package)) {
        None => Err(Finding::Unknown(Unknown::NotAnswered(text))),
        Some(Found::None) => Ok(()),
        Some(Found::Pending) => Err(Finding::Unknown(Unknown::Pending(text))),
        Some(Found::Erased) => Err(Finding::Unknown(Unknown::Erased(text))),
        Some(Found::Included { index, heirs, .. }) if heirs.is_empty() && *index >= own.as_of => {
            Err(Finding::Unknown(Unknown::Newer(text)))
        }
        Some(Found::Included { .. }) => Err(Problem::LeftOut(text).into()),
    }
}

/// Compares the owner's receipts with the log. Their signatures are verified when evidence is looked for.
fn check_receipts(own: &OwnPackage, answers: &CheckedAnswers<'_>) -> Result<(), Finding> {
    let signed = own.receipts.iter().map(String::as_str).chain(answers.receipt());
    let receipts: Vec<_> = signed.filter_map(|signed| Receipt::unverified(signed).ok()).collect();
    for step in own.steps() {
        let tag = step.tag(&own.package);
        let Some(Found::Included { leaf, index, heirs, .. }) = answers.get(&tag) else { continue };
        let contradicts = |receipt: &Receipt| {
            receipt.promises.iter().any(|promise| match promise {
                Promise::Leaf(promised) => promised.tag() == tag && promised != leaf,
                Promise::None(denied) => *denied == tag && heirs.is_empty() && *index < receipt.size,
            })
        };
        if receipts.iter().any(contradicts) {
            return Err(Problem::ReceiptContradicts(StepText(step)).into());
        }
    }
    Ok(())
}

fn check_welcome(own: &OwnPackage, welcome: &Welcome) -> Result<(), Finding> {
    let is_spend =
        |row: &TrailRow| row.event == Event::Spend && row.actor == welcome.sender && row.group_id == welcome.group_id;
    if own.rows.iter().any(is_spend) { Ok(()) } else { Err(Problem::UnexpectedWelcome(welcome.sender.clone()).into()) }
}
