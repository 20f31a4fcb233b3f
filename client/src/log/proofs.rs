//! Asks the server what its log has.

use keypool_openapi::{KeyPackageRef, ProofOf, ProofsRequest, ReservationId};
use keypool_transparency::answers::{Answers, CheckedAnswers};

use super::{Known, ServerLog};
use crate::error::Result;

pub(super) fn of_reservation(id: ReservationId) -> ProofOf {
    ProofOf { reservation_id: Some(id), ..ProofOf::default() }
}

pub(super) fn of_package(keypackage_ref: &KeyPackageRef) -> ProofOf {
    ProofOf { keypackage_ref: Some(keypackage_ref.clone()), ..ProofOf::default() }
}

impl ServerLog<'_> {
    /// The server's answers, whose checkpoint continues the one that this device has; with the logs that it knows then.
    pub(super) async fn fetch(&self, of: Vec<ProofOf>) -> Result<(Known, Answers)> {
        let named = self.kept()?;
        let since = named.as_ref().map(|kept| kept.place.clone());
        let answers = self.api.log_proofs(&ProofsRequest { of, receipt: false, since }).await?;
        self.follow(&answers.head(), named.as_ref()).await?;
        Ok((self.known()?, answers))
    }

    /// The answers, if the log has signed their checkpoint, and their paths lead to it.
    pub(super) fn proven<'f>(&self, answers: &'f Answers, known: &Known) -> Result<CheckedAnswers<'f>> {
        answers.check(&known.keys).map_err(|error| self.api.unexpected(format!("proofs that prove nothing: {error}")))
    }
}
