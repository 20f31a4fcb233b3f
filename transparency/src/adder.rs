//! The adder's check: that it alone has the package that it was handed.

use serde::{Deserialize, Serialize};

use crate::{
    answers::{CheckedAnswers, Found},
    commitment::{Event, Opening},
    contradiction::{Dossier, MAX_HAND_OUTS},
    encoding::bytes,
    key_package::KeyPackageFields,
    leaf::Leaf,
    package::{Bind, PackageId, ReservationId, Step, Tag},
    policy::Policy,
    receipt::Receipt,
    verdict::{Finding, Findings, Problem, StepText, Unknown, Verdict, opened},
};

/// The longest lifetime of a package that an adder accepts, in seconds: a log keeps tags for longer.
pub const MAX_LIFETIME: u64 = 90 * 86_400;

/// What has become of an adder's spend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Spend {
    /// It has not spent the package.
    Not,
    /// The server has acknowledged the spend.
    Acknowledged,
    /// The server refused the spend as lapsed while the reservation still held by the adder's clock.
    RefusedEarly,
}

/// What an adder keeps of a package that it was handed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HandOut {
    /// The number of the hand-out; `None` for a last resort. After a late spend, the number under which that is logged.
    pub n: Option<u32>,
    /// The owner of the package, `user/device`.
    pub owner: String,
    /// The adder itself, `user/device`.
    pub actor: String,
    /// The group for which it reserved; empty if it named none.
    #[serde(with = "bytes")]
    pub group_id: Vec<u8>,
    /// The group for which it spent, where that is another one than it reserved for; empty otherwise.
    #[serde(default, with = "bytes", skip_serializing_if = "Vec::is_empty")]
    pub spent_for: Vec<u8>,
    /// The reservation.
    pub reservation_id: ReservationId,
    /// The random bytes that it drew for the reservation.
    pub bind: Bind,
    /// Until when the server said that the reservation holds, in Unix seconds. `None` after a late spend.
    pub until: Option<u64>,
    /// What has become of its spend.
    pub spend: Spend,
    /// The receipts that it got for the reservation and for the spend.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub receipts: Vec<String>,
}

/// What an adder keeps of an earlier hand-out of the same package to itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EarlierHandOut {
    /// The hand-out.
    pub hand_out: HandOut,
    /// Whether it still holds the package, so that nobody may be handed it.
    pub held: bool,
}

impl HandOut {
    fn open_step(&self) -> Step {
        self.n.map_or(Step::Use(self.reservation_id), Step::Open)
    }

    fn end_step(&self) -> Step {
        self.n.map_or(Step::Used(self.reservation_id), Step::End)
    }

    /// The steps that the adder has to ask the server about.
    #[must_use]
    pub fn steps(&self) -> Vec<Step> {
        let earlier = (0..self.n.unwrap_or(0).min(MAX_HAND_OUTS)).map(Step::End);
        let end = (self.spend != Spend::Not).then(|| self.end_step());
        earlier.chain([self.open_step()]).chain(end).collect()
    }

    /// Checks the leaf of a reservation or spend when its receipt arrives: that the receipt is to this adder, has the
    /// leaf, and that the opening shows what the adder asked for.
    pub fn check_receipt(
        &self,
        package: &PackageId,
        receipt: &Receipt,
        event: Event,
        opening: &Opening,
    ) -> Result<Leaf, Problem> {
        let step = if event == Event::Reserve { self.open_step() } else { self.end_step() };
        let (tag, text) = (step.tag(package), StepText(step));
        let leaf = receipt.leaves().find(|leaf| leaf.tag() == tag).ok_or(Problem::Missing(text))?;
        if receipt.to != self.actor {
            return Err(Problem::Differs(text, "device in its receipt"));
        }
        opening.open(leaf, &step).map_err(|why| Problem::WrongOpening(text, why))?;
        match self.check_own(step, event, opening) {
            Err(Finding::Problem(problem)) => Err(problem),
            Err(Finding::Unknown(_)) => Err(Problem::Differs(text, "actor")),
            Ok(()) => Ok(*leaf),
        }
    }

    /// The group that a step names. A late spend begins its own hand-out, for the group of the spend.
    fn group_of(&self, event: Event) -> &[u8] {
        let is_of_spend = event == Event::Spend || self.until.is_none();
        if is_of_spend && !self.spent_for.is_empty() { &self.spent_for } else { &self.group_id }
    }

    /// Takes over the number under which a late spend is logged, if the answers show one. The adder may not have been told: a
    /// spend is late if the server had ended the hand-out, as lapsed or released, before the spend came. It is one more
    /// hand-out, with the adder's own `bind`.
    #[must_use]
    pub fn with_late_spend(mut self, package: &PackageId, answers: &CheckedAnswers<'_>) -> Self {
        while let (Spend::Acknowledged, Some(n)) = (self.spend, self.n.filter(|n| *n < MAX_HAND_OUTS)) {
            let ended = opened(answers, package, Step::End(n)).map(|opening| opening.details.event);
            let is_next = match answers.get(&Step::Open(n + 1).tag(package)) {
                Some(Found::Included { opening: Some(opening), .. }) => {
                    opening.actor.as_ref().is_some_and(|actor| actor.bind == self.bind)
                }
                found => matches!(found, Some(Found::Pending)),
            };
            if !(matches!(ended, Ok(Event::Lapse | Event::Release)) && is_next) {
                break;
            }
            (self.n, self.until) = (Some(n + 1), None);
        }
        self
    }

    /// Checks that the opening of an own step shows what the adder did.
    fn check_own(&self, step: Step, event: Event, opening: &Opening) -> Result<(), Finding> {
        let text = StepText(step);
        let Opening { details, actor: Some(actor) } = opening else {
            return Err(Finding::Unknown(Unknown::NoOpening(text)));
        };
        let is_reserve = event == Event::Reserve;
        let equal = [
            (details.event == event, "event"),
            (details.owner == self.owner, "owner"),
            (actor.actor == self.actor, "actor"),
            (actor.group_id == *self.group_of(event), "group"),
            (actor.reservation_id == self.reservation_id, "reservation"),
            (actor.bind == self.bind, "bind"),
            (!is_reserve || self.until.is_none_or(|until| until == details.until), "time until which it holds"),
        ];
        match equal.into_iter().find(|(is_equal, _)| !is_equal) {
            Some((_, what)) => Err(Problem::Differs(text, what).into()),
            None => Ok(()),
        }
    }
}

/// Checks one hand-out with the answers about its [`HandOut::steps`]. `earlier` are hand-outs of the same package to the
/// same adder.
#[must_use]
pub fn check(
    hand_out: &HandOut,
    fields: &KeyPackageFields,
    earlier: &[EarlierHandOut],
    answers: &CheckedAnswers<'_>,
    policy: &Policy,
) -> Verdict {
    let package = PackageId::of(fields);
    let mut findings = Findings::default();
    findings.add(check_package(hand_out, fields, earlier).map_err(Finding::from));
    for n in 0..hand_out.n.unwrap_or(0).min(MAX_HAND_OUTS) {
        findings.add(check_earlier_end(hand_out, &package, n, answers));
    }
    let own = |step, event| hand_out.check_own(step, event, opened(answers, &package, step)?);
    findings.add(own(hand_out.open_step(), Event::Reserve));
    match hand_out.spend {
        Spend::Not => {}
        Spend::Acknowledged => findings.add(own(hand_out.end_step(), Event::Spend)),
        Spend::RefusedEarly => findings.add(check_refusal(hand_out.end_step(), &package, answers)),
    }
    findings.add(check_receipts(hand_out, &package, answers));
    findings.verdict(|| dossier(hand_out, &package, earlier, answers).evidence(&package, policy))
}

/// What an adder holds about a package: for evidence, and for members of a group who bring theirs together.
#[must_use]
pub fn dossier(
    hand_out: &HandOut,
    package: &PackageId,
    earlier: &[EarlierHandOut],
    answers: &CheckedAnswers<'_>,
) -> Dossier {
    let mut dossier = Dossier { receipts: hand_out.receipts.clone(), ..Dossier::default() };
    dossier.receipts.extend(earlier.iter().flat_map(|earlier| earlier.hand_out.receipts.clone()));
    let ends = earlier.iter().map(|earlier| earlier.hand_out.end_step());
    let tags: Vec<Tag> = hand_out.steps().into_iter().chain(ends).map(|step| step.tag(package)).collect();
    dossier.add_answers(answers, &tags);
    dossier
}

/// What an adder checks before it uses the package, without an answer from the log.
pub fn check_package(hand_out: &HandOut, fields: &KeyPackageFields, earlier: &[EarlierHandOut]) -> Result<(), Problem> {
    let is_held = |earlier: &EarlierHandOut| {
        let once = hand_out.n.is_some();
        once && (earlier.held || earlier.hand_out.spend == Spend::Acknowledged || earlier.hand_out.n >= hand_out.n)
    };
    match hand_out.n {
        None if !fields.last_resort => Err(Problem::NotLastResort),
        Some(n) if n >= MAX_HAND_OUTS => Err(Problem::TooManyHandOuts(n)),
        _ if fields.not_after.saturating_sub(fields.not_before) > MAX_LIFETIME => Err(Problem::LivesTooLong),
        _ if earlier.iter().any(is_held) => Err(Problem::HeldAlready),
        _ => Ok(()),
    }
}

fn check_earlier_end(
    hand_out: &HandOut,
    package: &PackageId,
    n: u32,
    answers: &CheckedAnswers<'_>,
) -> Result<(), Finding> {
    let step = Step::End(n);
    let details = &opened(answers, package, step)?.details;
    match details.event {
        Event::Release | Event::Lapse if details.owner == hand_out.owner => Ok(()),
        Event::Release | Event::Lapse => Err(Problem::Differs(StepText(step), "owner").into()),
        event => Err(Problem::HandedOutAfter(StepText(step), event).into()),
    }
}

/// A spend before the time is refused only if the owner revoked the package.
fn check_refusal(step: Step, package: &PackageId, answers: &CheckedAnswers<'_>) -> Result<(), Finding> {
    match opened(answers, package, step)?.details.event {
        Event::Revoke => Ok(()),
        event => Err(Problem::EndedEarly(StepText(step), event).into()),
    }
}

/// Compares the receipts with the log. Their signatures are verified only if they differ, when evidence is looked for.
fn check_receipts(hand_out: &HandOut, package: &PackageId, answers: &CheckedAnswers<'_>) -> Result<(), Finding> {
    let receipts = hand_out.receipts.iter().filter_map(|signed| Receipt::unverified(signed).ok());
    let promised: Vec<Leaf> = receipts.flat_map(|receipt| receipt.leaves().copied().collect::<Vec<_>>()).collect();
    for step in hand_out.steps() {
        let tag = step.tag(package);
        let Some(Found::Included { leaf, .. }) = answers.get(&tag) else { continue };
        if promised.iter().any(|promised| promised.tag() == tag && promised != leaf) {
            return Err(Problem::ReceiptContradicts(StepText(step)).into());
        }
    }
    Ok(())
}
