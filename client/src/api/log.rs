//! The calls for the server's transparency log.

use keypool_openapi::{LogSize, PoolStatus, StatusQuery};
#[cfg(feature = "sqlite")]
use {
    super::TRY_TIMEOUT,
    crate::finding::Finding,
    keypool_openapi::{LogInfo, ProofsRequest},
    keypool_transparency::answers::Answers,
};

use super::{ApiClient, call::Call};
use crate::{
    error::{Error, Result},
    finding::LogError,
};

impl ApiClient {
    /// The status of the device's own pool. If the server has a transparency log, the status shows how that continues the
    /// checkpoint of this log and size.
    pub async fn get_key_package_status_since(&self, since: Option<&LogSize>) -> Result<PoolStatus> {
        let call = Call::get("keypackages/status");
        let Some(LogSize { origin, size }) = since else { return self.call(call).await };
        let query = StatusQuery { log_origin: Some(origin.clone()), log_size: Some(*size) };
        self.call(call.query(&query)?).await
    }

    /// The logs of the server, with their keys.
    #[cfg(feature = "sqlite")]
    pub(crate) async fn log_info(&self) -> Result<LogInfo> {
        self.call(Call::get("log")).await
    }

    /// What the log has of reservations of the device, and of its own KeyPackages.
    #[cfg(feature = "sqlite")]
    pub(crate) async fn log_proofs(&self, request: &ProofsRequest) -> Result<Answers> {
        self.call(Call::post("log/proofs", request)?).await
    }

    /// A tile of a log. Its path is below the server's address.
    #[cfg(feature = "sqlite")]
    pub(crate) async fn log_tile(&self, path: &str) -> Result<Vec<u8>> {
        self.attempt_bytes(&Call::get(path), TRY_TIMEOUT).await
    }

    /// Has every call fail from now on, since the server cannot be trusted; with `None`, no longer. So do all clones.
    #[cfg(feature = "sqlite")]
    pub(crate) fn stop(&self, finding: Option<Finding>) {
        *self.finding.write() = finding;
    }

    pub(super) fn check_trust(&self) -> Result<()> {
        match &*self.finding.read() {
            Some(finding) => Err(Error::Log(LogError::Misbehaved(Box::new(finding.clone())))),
            None => Ok(()),
        }
    }
}
