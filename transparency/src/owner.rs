//! The owner's check: that its trail is what the log has, and that the log has nothing more.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use crate::{
    answers::{CheckedAnswers, Found},
    commitment::{Actor, Event, Opening},
    contradiction::{Dossier, MAX_HAND_OUTS},
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
    fn shown(opening: &Opening, n: Option<u32>) -> Self {
        let Opening { details, actor } = opening;
        let (event, at) = (details.event, details.at);
        let Some(actor) = actor else {
            let (actor, group_id, reservation_id) = Default::default();
            return Self { event, n, at, actor, group_id, reservation_id };
        };
        let Actor { actor, group_id, reservation_id, .. } = actor.clone();
        Self { event, n, at, actor, group_id, reservation_id }
    }

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
    /// What the log itself shows of a package, as a trail: for an owner that asks for proofs without reading its trail. A use of
    /// a last resort that was not spent is left out, since the server keeps it from the owner.
    ///
    /// # Errors
    /// The verdict, where the answers do not open a leaf of the package.
    pub fn shown(package: PackageId, owner: &str, answers: &CheckedAnswers<'_>) -> Result<Self, Verdict> {
        let mut rows = Vec::new();
        for step in (0..MAX_HAND_OUTS).flat_map(|n| [Step::Open(n), Step::End(n)]) {
            match opened(answers, &package, step) {
                Ok(opening) => rows.push(TrailRow::shown(opening, Some(step.n()))),
                Err(Finding::Unknown(Unknown::NoOpening(text))) => {
                    return Err(Verdict::CannotTell(Unknown::NoOpening(text)));
                }
                Err(Finding::Unknown(_) | Finding::Problem(Problem::Missing(_))) => {}
                Err(Finding::Problem(problem)) => return Err(Verdict::Report(problem)),
            }
        }
        if rows.is_empty() {
            rows.extend(answers.uses_of(&package).map(|opening| TrailRow::shown(opening, None)));
            rows.sort_by_key(|row| (row.at, row.event == Event::Spend));
        }
        let (owner, as_of) = (owner.to_owned(), answers.checkpoint.size);
        Ok(Self { package, owner, rows, as_of, welcomes: Vec::new(), receipts: Vec::new() })
    }

    /// The same trail with the spend as the server tells it elsewhere.
    #[must_use]
    pub fn with_spend_by(mut self, actor: &str, group_id: &[u8]) -> Self {
        let (actor, group_id) = (actor.to_owned(), group_id.to_vec());
        if let Some(spend) = self.rows.iter_mut().find(|row| row.event == Event::Spend) {
            (spend.actor, spend.group_id) = (actor, group_id);
        } else if let Some(open) =
            self.rows.last().filter(|row| row.event == Event::Reserve && row.n.is_some()).cloned()
        {
            self.rows.push(TrailRow { event: Event::Spend, actor, group_id, ..open });
        }
        self
    }

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
        findings.add(check_welcome(own, welcome, answers));
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

/// A Welcome may arrive before its spend is in the log.
fn check_welcome(own: &OwnPackage, welcome: &Welcome, answers: &CheckedAnswers<'_>) -> Result<(), Finding> {
    let is_spend =
        |row: &TrailRow| row.event == Event::Spend && row.actor == welcome.sender && row.group_id == welcome.group_id;
    if own.rows.iter().any(is_spend) {
        return Ok(());
    }
    let is_pending = |step: &Step| matches!(answers.get(&step.tag(&own.package)), Some(Found::Pending));
    let is_numbered = own.rows.iter().any(|row| row.n.is_some());
    match own.steps().into_iter().find(is_pending) {
        Some(step) => Err(Finding::Unknown(Unknown::Pending(StepText(step)))),
        // The tags of a last resort name reservations, which the owner learns with the openings.
        None if !is_numbered && answers.has_pending() => {
            Err(Finding::Unknown(Unknown::Pending(StepText(Step::Used(ReservationId::default())))))
        }
        None => Err(Problem::UnexpectedWelcome(welcome.sender.clone()).into()),
    }
}
