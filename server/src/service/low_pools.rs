//! Low pools: lists the pools that are low or empty, for the operator.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use keypool_openapi::{LowPool, LowPools, LowPoolsQuery, ProblemType};

use super::{Service, pages::page};
use crate::{problem::Failure, store::LowPoolPlace};

/// Default number of pools in a page.
const PAGE: u32 = 100;

impl Service {
    /// Returns a page of the pools that are low or empty, the worst first.
    pub async fn low_pools(&self, query: LowPoolsQuery) -> Result<LowPools, Failure> {
        let limit = page(query.limit, PAGE)?;
        let after = query.after.map(|after| place(&after).ok_or_else(|| not_a_place(&after))).transpose()?;
        self.block(move |service, now| {
            let low = service.policy.health.low;
            let pools = service.store.low_pools(low, after.as_ref(), limit, service.as_of(now))?;
            let next = pools.last().filter(|_| pools.len() == limit as usize).map(next);
            Ok::<_, Failure>(LowPools { pools, next })
        })
        .await
    }
}

/// Returns the place of the next page as one word. It names a pool and not a number of pools, so that pools that were
/// filled meanwhile make no gap.
fn next(last: &LowPool) -> String {
    let place: LowPoolPlace = (last.fresh, last.user.clone(), last.device.clone(), last.ciphersuite);
    URL_SAFE_NO_PAD.encode(serde_json::json!(place).to_string())
}

fn place(after: &str) -> Option<LowPoolPlace> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(after).ok()?).ok()
}

fn not_a_place(after: &str) -> Failure {
    Failure::new(
        ProblemType::MalformedRequest,
        format!("`after` must be the `next` of the page before; got {after:?}."),
    )
}
