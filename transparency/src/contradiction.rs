//! Looks for evidence among the statements, receipts and openings that one party holds, or that several parties bring
//! together.

use crate::{
    answers::CheckedAnswers,
    commitment::{Event, Opening},
    evidence::{Evidence, EvidenceFile},
    note::Note,
    package::{PackageId, Step, Tag},
    policy::{LogKeys, Policy},
    receipt::{Promise, Receipt},
    statement::Statement,
    verification::{Outcome, verify},
};

/// The most hand-outs of one package: the 16th end retires it, and a late spend can follow that.
pub const MAX_HAND_OUTS: u32 = 17;

/// Statements, receipts and openings about one package.
#[derive(Clone, Debug, Default)]
pub struct Dossier {
    /// Leaves in the log.
    pub statements: Vec<Statement>,
    /// Receipts.
    pub receipts: Vec<String>,
    /// Openings of leaves.
    pub openings: Vec<Opening>,
    /// Notes that lead from a key of the policy to newer ones.
    pub key_notes: Vec<Note>,
}

impl Dossier {
    /// Adds what a server answered about some steps.
    pub fn add_answers(&mut self, answers: &CheckedAnswers<'_>, tags: &[Tag]) {
        self.statements.extend(answers.statements(tags.iter().copied()));
        self.openings.extend(answers.openings(tags.iter().copied()));
        self.receipts.extend(answers.receipt().map(str::to_owned));
    }

    /// Adds what another party holds.
    pub fn merge(&mut self, other: Self) {
        self.statements.extend(other.statements);
        self.receipts.extend(other.receipts);
        self.openings.extend(other.openings);
        self.key_notes.extend(other.key_notes);
    }

    /// Evidence that this policy accepts, if these hold any against the log.
    #[must_use]
    pub fn evidence(&self, package: &PackageId, policy: &Policy) -> Option<EvidenceFile> {
        let mut keys = policy.log_keys();
        for note in &self.key_notes {
            let _ = keys.follow(note); // a note that leads nowhere is no use here
        }
        let mut all = Candidates { dossier: self, statements: Vec::new(), receipts: Vec::new(), found: Vec::new() };
        all.read(&keys);
        all.repeated_tags();
        all.false_receipts();
        all.wrong_ends(package);
        let files = all.found.into_iter().map(|evidence| EvidenceFile::new(evidence, self.key_notes.clone()));
        files.into_iter().find(|file| matches!(verify(file, policy), Outcome::Proven(_)))
    }
}

struct Candidates<'a> {
    dossier: &'a Dossier,
    statements: Vec<Statement>,
    receipts: Vec<(&'a String, Receipt)>,
    found: Vec<Evidence>,
}

impl Candidates<'_> {
    fn read(&mut self, keys: &LogKeys) {
        self.statements.clone_from(&self.dossier.statements);
        for signed in &self.dossier.receipts {
            let Ok(receipt) = keys.receipt(signed) else { continue };
            let promised = receipt.leaves().map(|leaf| Statement::Receipt { leaf: *leaf, receipt: signed.clone() });
            self.statements.extend(promised);
            self.receipts.push((signed, receipt));
        }
    }

    fn repeated_tags(&mut self) {
        for (i, one) in self.statements.iter().enumerate() {
            let others = self.statements[..i].iter().filter(|other| other.leaf().tag() == one.leaf().tag());
            let evidence = others.map(|other| Evidence::TagRepeated { one: one.clone(), other: other.clone() });
            self.found.extend(evidence);
        }
    }

    fn false_receipts(&mut self) {
        for (signed, receipt) in &self.receipts {
            for promise in &receipt.promises {
                match promise {
                    Promise::None(tag) => {
                        let denied = self.statements.iter().filter(|statement| statement.leaf().tag() == *tag);
                        self.found.extend(
                            denied.map(|leaf| Evidence::FalseNone { receipt: (*signed).clone(), leaf: leaf.clone() }),
                        );
                    }
                    Promise::Leaf(leaf) => {
                        let openings = self.dossier.openings.iter().filter(|opening| opening.step_of(leaf).is_some());
                        self.found.extend(openings.map(|opening| Evidence::OtherActor {
                            receipt: (*signed).clone(),
                            leaf: *leaf,
                            opening: opening.clone(),
                        }));
                    }
                }
            }
        }
    }

    /// Statements of a step.
    fn of<'a>(&'a self, package: &PackageId, step: Step) -> impl Iterator<Item = &'a Statement> + use<'a> {
        let tag = step.tag(package);
        self.statements.iter().filter(move |statement| statement.leaf().tag() == tag)
    }

    fn wrong_ends(&mut self, package: &PackageId) {
        let mut found = Vec::new();
        for opening in &self.dossier.openings {
            let details = &opening.details;
            match details.event {
                Event::Spend | Event::Revoke => found.extend(self.later_hand_outs(package, opening)),
                Event::Lapse => found.extend(self.early_lapses(package, opening)),
                Event::Reserve | Event::Release => {}
            }
        }
        self.found.extend(found);
    }

    fn later_hand_outs(&self, package: &PackageId, ended: &Opening) -> Vec<Evidence> {
        let (n, mut found) = (ended.details.n, Vec::new());
        for later in (0..=MAX_HAND_OUTS).filter(|later| *later > n) {
            for end in self.of(package, Step::End(n)) {
                found.extend(self.of(package, Step::Open(later)).map(|open| Evidence::HandedOutAfterEnd {
                    end: end.clone(),
                    details: ended.details.clone(),
                    open: open.clone(),
                    later,
                }));
            }
        }
        found
    }

    fn early_lapses(&self, package: &PackageId, lapse: &Opening) -> Vec<Evidence> {
        let (n, mut found) = (lapse.details.n, Vec::new());
        let reserved = self.dossier.openings.iter().filter(|opening| {
            opening.details.event == Event::Reserve && opening.details.n == n && opening.details.package == *package
        });
        for opened in reserved {
            for open in self.of(package, Step::Open(n)) {
                for end in self.of(package, Step::End(n)) {
                    let next = self.of(package, Step::Open(n.saturating_add(1))).cloned().map(Some);
                    found.extend(next.chain([None]).map(|next| Evidence::LapsedEarly {
                        open: open.clone(),
                        open_details: opened.details.clone(),
                        end: end.clone(),
                        end_details: lapse.details.clone(),
                        next,
                    }));
                }
            }
        }
        found
    }
}
