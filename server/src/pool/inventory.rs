//! What owners and the operator look at, and what owners withdraw.

use std::sync::Arc;

use jiff::Timestamp;
use keypool_openapi::{
    AuditPage, AuditQuery, InventoryPage, InventoryQuery, LowPools, LowPoolsQuery, PoolStatus, ProblemType,
    RevokeRequest, RevokeResponse,
};

use super::{Pool, devices::unknown_user, status};
use crate::{
    auth::{Caller, Reader},
    problem::Failure,
    store::{DeviceId, DeviceRow, PoolContents, Revoked, StoreError},
};

/// The longest page of a list.
const MAX_PAGE: u32 = 1_000;
const INVENTORY_PAGE: u32 = 500;
const AUDIT_PAGE: u32 = 100;
const LOW_POOLS_PAGE: u32 = 100;

impl Pool {
    /// How the caller's pool is doing.
    pub async fn status(&self, caller: Arc<DeviceRow>) -> Result<PoolStatus, Failure> {
        let (contents, now) = self.contents_batched(caller.id).await?;
        Ok(status::summarise(&caller, &contents, self.policy.health, self.as_of(now)))
    }

    pub(super) fn status_blocking(&self, caller: &DeviceRow, now: Timestamp) -> Result<PoolStatus, Failure> {
        Ok(status::summarise(caller, &*self.contents(caller.id, now)?, self.policy.health, self.as_of(now)))
    }

    pub(super) fn contents(&self, owner: DeviceId, now: Timestamp) -> Result<Arc<PoolContents>, StoreError> {
        let contents = self.store.contents(&[owner], status::draining_since(now))?;
        Ok(contents.into_iter().next().unwrap_or_default())
    }

    /// A page of what the caller has in its pool.
    pub async fn inventory(&self, caller: Arc<DeviceRow>, query: InventoryQuery) -> Result<InventoryPage, Failure> {
        let limit = page(query.limit, INVENTORY_PAGE)?;
        self.block(move |pool, now| pool.store.inventory(caller.id, query.after.as_ref(), limit, pool.as_of(now))).await
    }

    /// A page of what happened to the caller's KeyPackages, or to a user's, for the operator.
    pub(crate) async fn audit(&self, reader: Reader, query: AuditQuery) -> Result<AuditPage, Failure> {
        let limit = page(query.limit, AUDIT_PAGE)?;
        let AuditQuery { user, before, .. } = query;
        if before.is_some_and(|before| before < 1) {
            return Err(Failure::new(
                ProblemType::MalformedRequest,
                "`before` must be the `next` of the page before, which is 1 or more.",
            ));
        }
        match (reader, user) {
            (Reader::Device(caller), None) => {
                self.block(move |pool, _| pool.store.audit(caller.device.id, before, limit)).await
            }
            (Reader::Device(_), Some(_)) => Err(Failure::new(
                ProblemType::Forbidden,
                "A device reads the audit trail of its own KeyPackages. Leave `user` out.",
            )),
            (Reader::Admin, Some(user)) => {
                self.block(move |pool, _| {
                    pool.store.audit_of_user(&user, before, limit)?.ok_or_else(|| unknown_user(&user))
                })
                .await
            }
            (Reader::Admin, None) => Err(Failure::new(
                ProblemType::MalformedRequest,
                "The admin token reads any user's audit trail. Name the user: `?user=NAME`.",
            )),
        }
    }

    /// Withdraws KeyPackages of the caller's own pool.
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
        self.block(move |pool, now| {
            let revoked = pool.store.revoke(&caller.shown_token(), refs.as_deref(), pool.as_of(now))?;
            let Revoked { revoked, ended, unknown } = revoked;
            let pool = pool.status_blocking(&caller.device, now)?;
            Ok::<_, Failure>(RevokeResponse { revoked, ended, unknown, pool })
        })
        .await
    }

    /// The pools that are low or empty, for the operator.
    pub async fn low_pools(&self, query: LowPoolsQuery) -> Result<LowPools, Failure> {
        let limit = page(query.limit, LOW_POOLS_PAGE)?;
        self.block(move |pool, now| {
            let pools = pool.store.low_pools(pool.policy.health.low.cast_signed(), limit, now)?;
            Ok::<_, Failure>(LowPools { pools })
        })
        .await
    }
}

fn page(wanted: Option<u32>, default: u32) -> Result<u32, Failure> {
    match wanted.unwrap_or(default) {
        limit @ 1..=MAX_PAGE => Ok(limit),
        limit => {
            Err(Failure::new(ProblemType::MalformedRequest, format!("`limit` must be 1 to {MAX_PAGE}; got {limit}.")))
        }
    }
}
