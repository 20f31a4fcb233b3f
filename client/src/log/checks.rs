//! The checks of a refresh: the adder's of each hand-out, and the owner's of each KeyPackage that came to its end.

use jiff::{SignedDuration, Timestamp};
use keypool_openapi::{LogHead, ProofOf};
use keypool_transparency::{
    adder::{self, HandOut},
    answers::{Answers, CheckedAnswers},
    key_package::KeyPackageFields,
    owner::{self, OwnPackage, Welcome},
    policy::Policy,
    verdict::{Problem, Verdict},
};
use tracing::{debug, warn};

use super::{
    Known, ServerLog,
    origins::Kept,
    proofs::{of_package, of_reservation},
};
use crate::{
    error::{Error, Result},
    finding::LogError,
    log_report::LogReport,
    pool::KeyPackagePool,
    storage::{CheckState, HandOutRow, LocalStore, OwnPackageRow},
};

/// The most hand-outs and KeyPackages in one request, and the most steps that the server answers.
const MOST: usize = 1_000;
const MOST_STEPS: usize = 4_000;

/// The most reservations that one refresh leaves out because the server refuses to prove them.
const MOST_REFUSED: usize = 32;

/// For how long after its end an own KeyPackage is remembered: as long as the server keeps its trail.
const KEPT_AFTER: SignedDuration = SignedDuration::from_hours(120 * 24);

/// What is to be compared with the log, with the numbers of the last rows.
#[derive(Default)]
struct Due {
    hand_outs: Vec<HandOutRow>,
    own: Vec<OwnPackageRow>,
    last: (i64, i64),
}

impl Due {
    fn proofs(&self) -> Vec<ProofOf> {
        let hand_outs = self.hand_outs.iter().map(|row| of_reservation(row.reservation_id));
        hand_outs.chain(self.own.iter().map(|row| of_package(&row.keypackage_ref))).collect()
    }
}

/// What the checks of a refresh have found.
pub(crate) struct Checked {
    pub(crate) report: LogReport,
    /// How many leaves the log has lost in a restore.
    pub(crate) lost: u64,
    /// Welcomes from devices to which the log shows no hand-out. They accuse nobody.
    pub(crate) unexpected: Vec<String>,
}

impl ServerLog<'_> {
    /// Compares what this device knows with the server's log; see [`ServerLog`]. `head` is what the server showed with the
    /// status of the pool, for the checkpoint that was named. `None` if there is no log.
    ///
    /// # Errors
    /// [`LogError::Misbehaved`] if the server has broken a promise.
    pub(crate) async fn check(
        &self,
        pool: KeyPackagePool<'_, LocalStore>,
        (head, named): (Option<&LogHead>, Option<&Kept>),
    ) -> Result<Option<Checked>> {
        let Some(head) = head else {
            if self.is_strict {
                return Err(LogError::Missing.into());
            }
            return Ok(None);
        };
        let (checkpoint, lost) = self.follow(&self.read_head(head)?, named).await?;
        let mut checked = Checked { report: LogReport::default(), lost, unexpected: Vec::new() };
        (checked.report.origin, checked.report.size) = (checkpoint.origin, checkpoint.size);
        let now = self.now();
        self.store.transaction(|| {
            self.store.record_own_packages(|keypackage_ref| pool.name_in_log(keypackage_ref))?;
            self.store.note_ended_packages()?;
            let own_before = now.saturating_sub(KEPT_AFTER).unwrap_or(Timestamp::MIN);
            self.store.forget_old_checks(now, own_before)?;
            self.store.set_log_checked_at(now)
        })?;
        self.check_due(&mut checked).await?;
        Ok(Some(checked))
    }

    async fn check_due(&self, checked: &mut Checked) -> Result<()> {
        let mut after = (0, 0);
        let mut refused = 0;
        loop {
            let due = self.due(after)?;
            if due.hand_outs.is_empty() && due.own.is_empty() {
                return Ok(());
            }
            let (known, answers) = match self.fetch(due.proofs()).await {
                Ok(fetched) => fetched,
                // The server knows nothing of this one: it was made before this device was registered anew, or is forgotten.
                Err(error) if refused < MOST_REFUSED => {
                    let Some(id) = error.reservation_id() else { return Err(error) };
                    debug!(%id, %error, "the server proves nothing of this reservation");
                    self.store.set_hand_out_state(&id, CheckState::Unknown)?;
                    checked.report.unknown += 1;
                    refused += 1;
                    continue;
                }
                Err(error) => return Err(error),
            };
            after = due.last;
            self.judge(&due, (&answers, &known), checked)?;
        }
    }

    /// The next things to check, as many as one request may ask for.
    fn due(&self, after: (i64, i64)) -> Result<Due> {
        let mut due = Due { last: after, ..Due::default() };
        let mut steps = 0;
        for (number, row) in self.store.due_hand_outs(after.0, MOST)? {
            steps += row.hand_out.steps().len() + 2;
            if steps > MOST_STEPS {
                return Ok(due);
            }
            due.last.0 = number;
            due.hand_outs.push(row);
        }
        for (number, row) in self.store.due_own_packages(after.1, MOST - due.hand_outs.len())? {
            // Its hand-outs, of which the server knows the number.
            steps += 36;
            if steps > MOST_STEPS {
                break;
            }
            due.last.1 = number;
            due.own.push(row);
        }
        Ok(due)
    }

    /// Checks the answers: signature, paths, and what they show.
    fn judge(&self, due: &Due, (answers, known): (&Answers, &Known), checked: &mut Checked) -> Result<()> {
        let (proven, policy) = (self.proven(answers, known)?, known.policy()?);
        let mut states = Vec::new();
        for row in &due.hand_outs {
            let (hand_out, verdict) = self.adders_verdict(row, &proven, &policy)?;
            let state = self.state_after(&verdict, checked, known, || format!("{row:#?}\n{answers:#?}\n"))?;
            states.push((row, hand_out, state));
        }
        let mut own_states = Vec::new();
        for row in &due.own {
            let verdict = owners_verdict(row, &self.own, &proven, &policy);
            let state = self.state_after(&verdict, checked, known, || format!("{row:#?}\n{answers:#?}\n"))?;
            own_states.push((&row.keypackage_ref, state));
        }
        self.store.transaction(|| {
            for (row, hand_out, state) in states {
                match hand_out {
                    _ if state == CheckState::Due => {}
                    Some(hand_out) => self.store.put_hand_out(&HandOutRow { hand_out, state, ..row.clone() })?,
                    None => self.store.set_hand_out_state(&row.reservation_id, state)?,
                }
            }
            own_states
                .into_iter()
                .try_for_each(|(keypackage_ref, state)| self.store.set_own_state(keypackage_ref, state))
        })
    }

    /// The adder's verdict, and the hand-out as the log shows it if that is another: a late spend is one more hand-out.
    pub(super) fn adders_verdict(
        &self,
        row: &HandOutRow,
        proven: &CheckedAnswers<'_>,
        policy: &Policy,
    ) -> Result<(Option<HandOut>, Verdict)> {
        let fields = KeyPackageFields::parse(&row.key_package)
            .map_err(|error| Error::Damaged(format!("a KeyPackage cannot be read: {error}")))?;
        let hand_out: HandOut = row.hand_out.clone().with_late_spend(&row.package, proven);
        let earlier = self.earlier(&row.package, row.asked_after)?;
        let verdict = adder::check(&hand_out, &fields, &earlier, proven, policy);
        Ok(((hand_out != row.hand_out).then_some(hand_out), verdict))
    }

    /// Counts a verdict, and stops using the server if it has broken a promise.
    fn state_after(
        &self,
        verdict: &Verdict,
        checked: &mut Checked,
        known: &Known,
        report: impl FnOnce() -> String,
    ) -> Result<CheckState> {
        match verdict {
            Verdict::Fine => {
                checked.report.checked += 1;
                Ok(CheckState::Fine)
            }
            Verdict::CannotTell(unknown) if unknown.may_pass() => {
                checked.report.waiting += 1;
                Ok(CheckState::Due)
            }
            Verdict::CannotTell(unknown) => {
                debug!(%unknown, "the server can no longer prove a hand-out");
                checked.report.unknown += 1;
                Ok(CheckState::Unknown)
            }
            Verdict::Report(Problem::UnexpectedWelcome(from)) => {
                warn!(from, "a Welcome came from a device to which the log shows no hand-out");
                checked.report.checked += 1;
                checked.unexpected.push(from.clone());
                Ok(CheckState::Fine)
            }
            Verdict::Report(problem) => {
                Err(self.raise(problem.to_string(), None, known, || format!("{problem}\n{}", report())))
            }
            Verdict::Proven { problem, evidence } => {
                Err(self.raise(problem.to_string(), Some((**evidence).clone()), known, String::new))
            }
        }
    }
}

/// Compares what the log shows of a KeyPackage with what the server and its sender have said of its use.
fn owners_verdict(row: &OwnPackageRow, own: &str, proven: &CheckedAnswers<'_>, policy: &Policy) -> Verdict {
    let shown = match OwnPackage::shown(row.package, own, proven) {
        Ok(shown) => shown,
        Err(verdict) => return verdict,
    };
    let shown = match &row.spent {
        Some(Welcome { sender, group_id }) => shown.with_spend_by(sender, group_id),
        None => shown,
    };
    owner::check(&OwnPackage { welcomes: row.welcome.clone().into_iter().collect(), ..shown }, proven, policy)
}
