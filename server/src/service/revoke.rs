//! Revoke: an owner withdraws its KeyPackages.

use keypool_openapi::{ProblemType, RevokeRequest, RevokeResponse};

use super::Service;
use crate::{caller::Caller, problem::Failure, store::Revoked};

impl Service {
    /// Revokes KeyPackages of the caller's own pool.
    pub async fn revoke(&self, caller: Caller, request: RevokeRequest) -> Result<RevokeResponse, Failure> {
        let RevokeRequest { refs, all } = request;
        if refs.is_none() && all.is_none() || refs.as_ref().is_some_and(Vec::is_empty) {
            return Err(Failure::new(
                ProblemType::MalformedRequest,
                "The revocation names no KeyPackage. Send `refs` with 1 to 1000 refs, or `all` as true.",
            ));
        }
        let mut refs = refs.unwrap_or_default();
        refs.sort_unstable();
        refs.dedup();
        let refs = (all != Some(true)).then_some(refs);
        self.block(move |service, now| {
            let revoked = service.store.revoke(&caller.shown_token(), refs.as_deref(), service.as_of(now))?;
            let Revoked { revoked, ended, unknown } = revoked;
            let pool = service.status_blocking(&caller.device, now)?;
            Ok::<_, Failure>(RevokeResponse { revoked, ended, unknown, pool })
        })
        .await
    }
}
