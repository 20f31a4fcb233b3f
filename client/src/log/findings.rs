//! What a check has found: the evidence is written, and the server is not used any more.

use jiff::Timestamp;
use keypool_transparency::evidence::EvidenceFile;
use tracing::error;

use super::{Known, ServerLog};
use crate::{
    error::{Error, Result},
    finding::{Finding, LogError},
};

impl ServerLog<'_> {
    /// Writes down that the server has broken a promise, and stops using it. Returns the error to fail with.
    ///
    /// Without evidence that convinces others, `report` says what this device saw.
    pub(super) fn raise(
        &self,
        problem: String,
        evidence: Option<EvidenceFile>,
        known: &Known,
        report: impl FnOnce() -> String,
    ) -> Error {
        match self.record_finding(problem, evidence, known, report) {
            Ok(finding) => {
                error!(problem = finding.problem, "the server cannot be trusted");
                self.api.stop(Some(finding.clone()));
                LogError::Misbehaved(Box::new(finding)).into()
            }
            Err(error) => error,
        }
    }

    fn record_finding(
        &self,
        problem: String,
        evidence: Option<EvidenceFile>,
        known: &Known,
        report: impl FnOnce() -> String,
    ) -> Result<Finding> {
        let is_proven = evidence.is_some();
        let content = match evidence {
            Some(file) => EvidenceFile::new(file.evidence, known.key_notes()).to_json(),
            None => report(),
        };
        let number = self.store.findings()?.len() + 1;
        let name = if is_proven { format!("log-evidence-{number}.json") } else { format!("log-report-{number}.txt") };
        let file = self.store.write_file(&name, content.as_bytes())?;
        // As it is stored: in whole seconds.
        let found_at = Timestamp::from_second(self.now().as_second()).unwrap_or(Timestamp::UNIX_EPOCH);
        let finding = Finding { found_at, problem, is_proven, file, is_dismissed: false };
        self.store.put_finding(&finding)?;
        Ok(finding)
    }

    /// What this device has found the server to have done, the oldest first.
    pub fn findings(&self) -> Result<Vec<Finding>> {
        self.store.findings()
    }

    /// Uses the server again in spite of what was found. The files stay.
    pub fn dismiss_findings(&self) -> Result<()> {
        self.store.dismiss_findings()?;
        self.api.stop(None);
        Ok(())
    }
}
