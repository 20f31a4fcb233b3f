//! What a check finds, and which evidence it can give.

use std::fmt;

use crate::{
    answers::{CheckedAnswers, Found},
    commitment::{Event, Opening, WrongOpening},
    evidence::EvidenceFile,
    package::{PackageId, Step},
};

/// The result of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All is as it has to be.
    Fine,
    /// The server lied, or was badly restored, and the evidence proves it to others.
    Proven {
        /// What is wrong.
        problem: Problem,
        /// The proof.
        evidence: Box<EvidenceFile>,
    },
    /// Something is wrong that cannot be proven to others.
    Report(Problem),
    /// Something is not known yet, or not any more.
    CannotTell(Unknown),
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// A package without the last-resort extension came without a number.
    #[error("the KeyPackage was handed out as a last resort, and has no last_resort extension")]
    NotLastResort,
    /// It lives longer than a log keeps its tags.
    #[error("the KeyPackage lives longer than 90 days, so its tags can be forgotten before it expires")]
    LivesTooLong,
    /// The adder holds it or has spent it already.
    #[error("the KeyPackage was handed out to this device before, and that hand-out is not over")]
    HeldAlready,
    /// It was handed out more often than a server hands out one package.
    #[error("the number of the hand-out is {0}; a package has at most 17")]
    TooManyHandOuts(u32),
    /// The server says that a step has not happened that must have.
    #[error("{0} must be in the log, and the server says that it has not happened")]
    Missing(StepText),
    /// The opening that the server gave does not open the leaf.
    #[error("{0}: {1}")]
    WrongOpening(StepText, WrongOpening),
    /// A hand-out follows a spend or a revoke.
    #[error("the KeyPackage was handed out after {0}, which is a {1:?}")]
    HandedOutAfter(StepText, Event),
    /// A reservation was over before its time, so that the server refused the adder's spend.
    #[error("{0} is a {1:?} before the time until which the reservation held")]
    EndedEarly(StepText, Event),
    /// A leaf says something else than the checker knows.
    #[error("{0} has another {1}")]
    Differs(StepText, &'static str),
    /// A receipt contradicts the log.
    #[error("a receipt contradicts {0}")]
    ReceiptContradicts(StepText),
    /// The log has a hand-out that the trail leaves out.
    #[error("{0} is in the log, and the trail leaves it out")]
    LeftOut(StepText),
    /// The rows of the trail do not follow one another.
    #[error("the trail has {0} where it cannot be")]
    OutOfOrder(StepText),
    /// A Welcome came from a device to which the trail does not show a spend for that group. The server or an earlier adder
    /// may have used bytes that it saw: nobody is accused.
    #[error("a Welcome came from {0}, and no spend in the trail is by that device for that group")]
    UnexpectedWelcome(String),
}

impl Problem {
    /// Whether it is the server that is wrong.
    #[must_use]
    pub fn accuses_server(&self) -> bool {
        !matches!(self, Self::UnexpectedWelcome(_) | Self::LivesTooLong)
    }
}

/// Why a check cannot tell.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unknown {
    /// The step is not in the tree yet.
    #[error("{0} is not in the log yet: check again later")]
    Pending(StepText),
    /// The owner's device was erased.
    #[error("the server does not know {0} any more: the owner's device was erased")]
    Erased(StepText),
    /// The step happened after the trail was read.
    #[error("{0} happened after the trail was read: read it again")]
    Newer(StepText),
    /// The leaf is there, and its opening is not.
    #[error("the server gave no opening of {0}")]
    NoOpening(StepText),
    /// The server left the step out of its answer.
    #[error("the server did not answer about {0}")]
    NotAnswered(StepText),
}

impl Unknown {
    /// Whether a later check may tell.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Pending(_) | Self::Newer(_))
    }
}

/// A step as messages name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepText(pub Step);

impl fmt::Display for StepText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Step::Open(n) => write!(f, "the begin of hand-out {n}"),
            Step::End(n) => write!(f, "the end of hand-out {n}"),
            Step::Use(_) => f.write_str("the use of the last resort"),
            Step::Used(_) => f.write_str("the spend of the last resort"),
        }
    }
}

/// What is wrong or unknown about one step.
pub(crate) enum Finding {
    Problem(Problem),
    Unknown(Unknown),
}

impl From<Problem> for Finding {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

/// Problems and unknowns of one check, in the order in which they were found.
#[derive(Default)]
pub(crate) struct Findings {
    pub(crate) problem: Option<Problem>,
    unknown: Option<Unknown>,
}

impl Findings {
    pub(crate) fn add(&mut self, result: Result<(), Finding>) {
        match result {
            Ok(()) => {}
            Err(Finding::Problem(problem)) => {
                self.problem.get_or_insert(problem);
            }
            Err(Finding::Unknown(unknown)) => {
                self.unknown.get_or_insert(unknown);
            }
        }
    }

    /// Gives the verdict; `prove` looks for evidence if there is a problem.
    pub(crate) fn verdict(self, prove: impl FnOnce() -> Option<EvidenceFile>) -> Verdict {
        match (self.problem, self.unknown) {
            (Some(problem), _) => match prove() {
                Some(evidence) => Verdict::Proven { problem, evidence: Box::new(evidence) },
                None => Verdict::Report(problem),
            },
            (None, Some(unknown)) => Verdict::CannotTell(unknown),
            (None, None) => Verdict::Fine,
        }
    }
}

/// The opening of a step that must have happened, checked against its leaf.
pub(crate) fn opened<'a>(
    answers: &'a CheckedAnswers<'_>,
    package: &PackageId,
    step: Step,
) -> Result<&'a Opening, Finding> {
    let text = StepText(step);
    let unknown = |unknown| Err(Finding::Unknown(unknown));
    match answers.get(&step.tag(package)) {
        None => unknown(Unknown::NotAnswered(text)),
        Some(Found::Pending) => unknown(Unknown::Pending(text)),
        Some(Found::Erased) => unknown(Unknown::Erased(text)),
        Some(Found::None) => Err(Problem::Missing(text).into()),
        Some(Found::Included { opening: None, .. }) => unknown(Unknown::NoOpening(text)),
        Some(Found::Included { leaf, opening: Some(opening), .. }) => {
            opening.open(leaf, &step).map_err(|why| Problem::WrongOpening(text, why))?;
            if opening.details.package == *package {
                Ok(opening)
            } else {
                Err(Problem::Differs(text, "package").into())
            }
        }
    }
}
