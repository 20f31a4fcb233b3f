//! A pool as the status and the inventory show it, by the model.

use keypool_openapi::{
    Base64Bytes, DeviceOf, Health, InventoryItem, KeyPackageRef, LastResortStatus, PoolStatus, State, SuiteStatus,
};
use sha2::{Digest, Sha256};

use super::reference::{End, Life, Model, Package, Seconds, Who, time};

const TWO_DAYS: Seconds = 2 * 86_400;

impl Model {
    pub fn inventory(&self, owner: Who) -> Vec<InventoryItem> {
        let item = |(keypackage_ref, package, state): (&KeyPackageRef, &Package, State)| {
            item(keypackage_ref.clone(), &package.life, package.suite, state, &self.names)
        };
        self.of(owner).map(item).collect()
    }

    pub fn status(&self, owner: Who) -> PoolStatus {
        let mut suites: Vec<_> = self.of(owner).map(|(_, package, _)| package.suite).collect();
        suites.sort_unstable();
        suites.dedup();
        let all: Vec<_> = suites.into_iter().filter_map(|suite| self.suite_status(owner, suite)).collect();
        let sum = |part: fn(&SuiteStatus) -> u64| all.iter().map(part).sum::<u64>();
        let digest = self.live(owner).iter().fold(Sha256::new(), |hash, r| hash.chain_update(r.as_bytes())).finalize();
        let DeviceOf { user, device } = self.names[owner].clone();
        PoolStatus {
            user,
            device,
            at: time(self.now),
            min_remaining: self.rules.min_remaining.max(1).unsigned_abs(),
            available: sum(|s| s.available),
            fresh: sum(|s| s.fresh),
            lapsed: sum(|s| s.lapsed),
            reserved: sum(|s| s.reserved),
            spent: sum(|s| s.spent),
            expired: sum(|s| s.expired),
            revoked: sum(|s| s.revoked),
            total: sum(|s| s.total),
            expiring_soon: sum(|s| s.expiring_soon),
            last_upload: self.last_upload[owner].map(time),
            fenced_at: None,
            log: None,
            last_resort: LastResortStatus {
                present: all.iter().any(|s| s.last_resort.present),
                uses: sum(|s| s.last_resort.uses),
            },
            health: all.iter().map(|s| s.health).min().unwrap_or(Health::Empty),
            recommended_upload: if all.is_empty() { self.rules.target } else { sum(|s| s.recommended_upload) },
            inventory_digest: hex::encode(digest),
            draining: Vec::new(),
            ciphersuites: all,
        }
    }

    /// The part of one ciphersuite; `None` where there is nothing but a last resort that is over.
    fn suite_status(&self, owner: Who, ciphersuite: u16) -> Option<SuiteStatus> {
        let of_suite = || self.of(owner).filter(|(_, package, _)| package.suite == ciphersuite);
        let last_resort = of_suite().find(|(_, p, state)| p.life.last_resort && self.is_offered(p, *state));
        let last_resort = last_resort.map(|(_, package, _)| LastResortStatus { present: true, uses: package.uses });
        let common: Vec<_> = of_suite().filter(|(_, package, _)| !package.life.last_resort).collect();
        if common.is_empty() && last_resort.is_none() {
            return None;
        }
        let count =
            |is: &dyn Fn(&Package, State) -> bool| common.iter().filter(|(_, p, state)| is(p, *state)).count() as u64;
        let fresh = count(&|package, state| self.is_offered(package, state) && package.life.hold.is_none());
        let available = count(&|package, state| self.is_offered(package, state));
        Some(SuiteStatus {
            ciphersuite,
            available,
            fresh,
            lapsed: available - fresh,
            reserved: count(&|_, state| state == State::Reserved),
            spent: count(&|_, state| state == State::Spent),
            expired: count(&|package, state| {
                state == State::Expired || state == State::Available && !self.is_offered(package, state)
            }),
            revoked: count(&|_, state| matches!(state, State::Revoked | State::Retired)),
            total: common.len() as u64,
            expiring_soon: count(&|package, state| {
                self.is_offered(package, state) && package.life.not_after - self.usable_until() <= TWO_DAYS
            }),
            last_resort: last_resort.unwrap_or_default(),
            health: match fresh {
                _ if available == 0 => Health::Empty,
                fresh if fresh < self.rules.low => Health::Low,
                _ => Health::Good,
            },
            recommended_upload: self.rules.target.saturating_sub(fresh),
        })
    }
}

/// A life as the inventory shows it.
pub fn item(keypackage_ref: KeyPackageRef, life: &Life, suite: u16, state: State, names: &[DeviceOf]) -> InventoryItem {
    let (group_id, spent_at) = match &life.end {
        Some(End::Spent { group, at }) => (Some(Base64Bytes(group.clone())), Some(time(*at))),
        _ => (None, None),
    };
    InventoryItem {
        keypackage_ref,
        state,
        ciphersuite: suite,
        not_after: time(life.not_after),
        last_resort: life.last_resort,
        reservation_id: life.hold.map(|hold| hold.id),
        reserved_by: life.hold.map(|hold| names[hold.by].clone()),
        reserved_until: life.hold.map(|hold| time(hold.until)),
        spent_at,
        group_id,
    }
}
