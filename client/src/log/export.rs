//! Files for `keypool-verify`, and the comparison of the whole trail with the log.

use std::collections::{BTreeMap, HashMap};

use keypool_openapi::{Action, AuditEvent, KeyPackageRef, LogSize, ReservationId};
use keypool_transparency::{
    answers::CheckedAnswers,
    commitment::Event,
    encoding::{base64, to_json},
    files::{HandOutsFile, ProofFile},
    owner::{self, OwnPackage, TrailRow},
    package::{self, PackageId},
    verdict::{Problem, Verdict},
};

use super::{
    ServerLog, TrailCheck,
    hand_outs::id_in_log,
    proofs::{of_package, of_reservation},
};
use crate::{
    error::{Error, Result},
    finding::LogError,
    pool::{OnProgress, Progress},
};

/// The events of one request for the trail, and the most requests.
const PAGE: u32 = 1_000;
const MAX_PAGES: usize = 1_000;

/// The KeyPackages of one request for proofs: each may have 36 steps.
const CHUNK: usize = 100;

/// The trail of this device's KeyPackages, as the server tells it.
struct Trail {
    /// The events of each KeyPackage, the oldest first.
    events: BTreeMap<KeyPackageRef, Vec<AuditEvent>>,
    /// The log before the trail was read.
    log: LogSize,
    /// The names of the KeyPackages in the log, as far as this device knows them.
    packages: HashMap<KeyPackageRef, PackageId>,
}

/// A proof for `keypool-verify proof`, with what its reader has to know.
#[derive(Clone, Debug)]
pub struct ExportedProof {
    /// The file, in JSON.
    pub proof: String,
    /// The `MLSMessage` with the KeyPackage.
    pub key_package: Vec<u8>,
    /// The random bytes that this device drew for the reservation, in base64.
    pub bind: String,
}

impl ServerLog<'_> {
    /// The proof that this device alone has the KeyPackage of a reservation, for `keypool-verify proof`.
    ///
    /// # Errors
    /// [`Error::UnknownReservation`] if this device does not know the reservation.
    pub async fn export_proof(&self, id: ReservationId) -> Result<ExportedProof> {
        let row = self.store.hand_out(&id)?.ok_or(Error::UnknownReservation(id))?;
        let (known, answers) = self.fetch(vec![of_reservation(id)]).await?;
        let proven = self.proven(&answers, &known)?;
        let hand_out = row.hand_out.with_late_spend(&row.package, &proven);
        let bind = base64(&hand_out.bind.0);
        let proof = to_json(&ProofFile::new(hand_out, answers, known.key_notes()));
        Ok(ExportedProof { proof, key_package: row.key_package, bind })
    }

    /// The proof of all hand-outs of this device's KeyPackages, as files for `keypool-verify handouts`: as many as the server's
    /// answers.
    pub async fn export_hand_outs(&self) -> Result<Vec<String>> {
        let trail = self.trail().await?;
        let mut files = Vec::new();
        for refs in chunks(&trail) {
            let (known, answers) = self.fetch(refs.iter().map(|of| of_package(of)).collect()).await?;
            let proven = self.proven(&answers, &known)?;
            let packages = refs.iter().filter_map(|of| self.own_package(of, &trail, &proven)).collect();
            files.push(to_json(&HandOutsFile::new(packages, answers, known.key_notes())));
        }
        Ok(files)
    }

    /// Compares the server's trail of this device's KeyPackages with its log: each event with its leaf, and that the log has
    /// nothing more.
    ///
    /// # Errors
    /// [`LogError::Misbehaved`] at the first difference.
    pub async fn verify_trail(&self, progress: OnProgress<'_>) -> Result<Vec<TrailCheck>> {
        let trail = self.trail().await?;
        let mut checks = Vec::new();
        for refs in chunks(&trail) {
            let (known, answers) = self.fetch(refs.iter().map(|of| of_package(of)).collect()).await?;
            let (proven, policy) = (self.proven(&answers, &known)?, known.policy()?);
            for of in refs {
                let Some(own) = self.own_package(of, &trail, &proven) else {
                    checks.push(unnamed(of, &trail));
                    continue;
                };
                let verdict = owner::check(&own, &proven, &policy);
                if let Verdict::Proven { problem, evidence } = &verdict {
                    return Err(self.raise(problem.to_string(), Some((**evidence).clone()), &known, String::new));
                }
                if let Verdict::Report(problem) = &verdict {
                    let report = || format!("{problem}\n{own:#?}\n{answers:#?}\n");
                    return Err(self.raise(problem.to_string(), None, &known, report));
                }
                checks.push(told(of, own.rows.len(), &verdict));
            }
            progress(Progress::Compared { done: checks.len(), total: trail.events.len() });
        }
        Ok(checks)
    }

    async fn trail(&self) -> Result<Trail> {
        let mut events: BTreeMap<_, Vec<_>> = BTreeMap::new();
        let (mut before, mut log) = (None, None);
        for _ in 0..MAX_PAGES {
            let page = self.api.get_audit_trail(before, PAGE).await?;
            if log.is_none() {
                log = Some(page.log.ok_or(LogError::Missing)?);
            }
            for event in page.events.into_iter().filter(|event| event.leaves > 0) {
                events.entry(event.keypackage_ref.clone()).or_default().push(event);
            }
            let is_later = |next: i64| before.is_none_or(|before| next < before);
            match page.next {
                Some(next) if is_later(next) => before = Some(next),
                Some(_) => return Err(self.api.unexpected("the next page of the trail begins after this one")),
                None => {
                    for events in events.values_mut() {
                        events.reverse();
                    }
                    let rows = self.store.own_packages()?.into_iter();
                    let packages = rows.map(|row| (row.keypackage_ref, row.package)).collect();
                    return Ok(Trail {
                        events,
                        log: log.unwrap_or(LogSize { origin: String::new(), size: 0 }),
                        packages,
                    });
                }
            }
        }
        Err(self.api.unexpected(format!("the trail has more than {MAX_PAGES} pages of {PAGE}")))
    }

    /// What this device knows of a KeyPackage by the trail; `None` if it does not know its name in the log any more.
    fn own_package(&self, of: &KeyPackageRef, trail: &Trail, proven: &CheckedAnswers<'_>) -> Option<OwnPackage> {
        let package = *trail.packages.get(of)?;
        let rows = trail.events.get(of).into_iter().flatten().flat_map(trail_rows).collect();
        // The answers are of the newest log, which may have begun since.
        let is_same_log = proven.checkpoint.origin == trail.log.origin;
        let as_of = if is_same_log { trail.log.size } else { 0 };
        Some(OwnPackage { package, owner: self.own.clone(), rows, as_of, welcomes: Vec::new(), receipts: Vec::new() })
    }
}

fn chunks(trail: &Trail) -> Vec<Vec<&KeyPackageRef>> {
    let refs: Vec<_> = trail.events.keys().collect();
    refs.chunks(CHUNK).map(<[_]>::to_vec).collect()
}

/// The rows that an event stands for: one for each leaf.
fn trail_rows(event: &AuditEvent) -> Vec<TrailRow> {
    let kind = match event.action {
        Action::Reserve => Event::Reserve,
        Action::Spend => Event::Spend,
        Action::Release => Event::Release,
        Action::Lapse => Event::Lapse,
        Action::Revoke => Event::Revoke,
        _ => return Vec::new(),
    };
    let row = TrailRow {
        event: kind,
        n: event.handout,
        at: u64::try_from(event.at.as_second()).unwrap_or_default(),
        actor: holder(event),
        group_id: event.group_id.clone().filter(|_| kind == Event::Spend).unwrap_or_default().0,
        reservation_id: event.reservation_id.as_ref().map_or(package::ReservationId::default(), id_in_log),
    };
    let begin = (event.leaves > 1).then(|| TrailRow { event: Event::Reserve, ..row.clone() });
    begin.into_iter().chain([row]).collect()
}

/// The holder of the reservation. The one who revokes is the owner or the operator.
fn holder(event: &AuditEvent) -> String {
    let actor = event.actor.as_ref().filter(|_| event.action != Action::Revoke);
    actor.map(ToString::to_string).unwrap_or_default()
}

fn unnamed(of: &KeyPackageRef, trail: &Trail) -> TrailCheck {
    let why = "this device has forgotten the KeyPackage's name in the log".to_owned();
    let events = trail.events.get(of).map_or(0, Vec::len);
    TrailCheck { keypackage_ref: of.clone(), events, agrees: None, why: Some(why) }
}

fn told(of: &KeyPackageRef, events: usize, verdict: &Verdict) -> TrailCheck {
    let (agrees, why) = match verdict {
        Verdict::Fine => (Some(true), None),
        Verdict::CannotTell(unknown) => (None, Some(unknown.to_string())),
        Verdict::Report(problem) | Verdict::Proven { problem, .. } => (Some(false), Some(Problem::to_string(problem))),
    };
    TrailCheck { keypackage_ref: of.clone(), events, agrees, why }
}
