//! Status of a pool: counts, health, and the digest of its inventory.

use std::{cmp::Reverse, collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use keypool_openapi::{
    DeviceName, Drain, Health, LastResortStatus, PoolStatus, State, StatusQuery, SuiteStatus, UserName,
    inventory_digest,
};

use super::{
    Service,
    batches::{Read, draining_since},
    devices::unknown_device,
    log_heads::named,
    policy::Watermarks,
};
use crate::{
    problem::Failure,
    store::{AsOf, DeviceRow, LiveKeyPackage, PoolContents, StoreError},
};

/// KeyPackages that are handed out no longer than this count as expiring soon, in seconds.
const SOON: i64 = 48 * 60 * 60;

impl Service {
    /// Returns the status of the caller's pool, and the newest checkpoint of the log.
    pub async fn status(&self, caller: Arc<DeviceRow>, query: StatusQuery) -> Result<PoolStatus, Failure> {
        let since = named(query)?;
        let Read { contents, head, at } = self.batches.status.run(caller.id).await?;
        let log = match head {
            Some(head) => Some(self.log_head(head, since).await?),
            None => None,
        };
        Ok(PoolStatus { log, ..summarise(&caller, &contents, self.policy.health, self.as_of(at)) })
    }

    /// Returns the status of a device's pool.
    pub(super) async fn pool_status(&self, device: &DeviceRow) -> Result<PoolStatus, Failure> {
        let Read { contents, at, .. } = self.batches.status.run(device.id).await?;
        Ok(summarise(device, &contents, self.policy.health, self.as_of(at)))
    }

    /// Returns the status of any device's pool, for the operator.
    pub async fn status_of(&self, user: UserName, device: DeviceName) -> Result<PoolStatus, Failure> {
        let found = self.block(move |service, _| {
            let found = service.store.find(&user, &device)?;
            found.ok_or_else(|| unknown_device(&user, &device))
        });
        self.pool_status(&found.await?).await
    }

    /// Like [`Self::status`], on a thread that may block.
    pub(super) fn status_blocking(&self, caller: &DeviceRow, now: Timestamp) -> Result<PoolStatus, StoreError> {
        let contents = self.store.contents(&[caller.id], draining_since(now))?.pop().unwrap_or_default();
        Ok(summarise(caller, &contents, self.policy.health, self.as_of(now)))
    }
}

fn summarise(device: &DeviceRow, contents: &PoolContents, watermarks: Watermarks, as_of: AsOf) -> PoolStatus {
    let mut suites: BTreeMap<u16, SuiteStatus> = BTreeMap::new();
    // A last resort that cannot be handed out is not counted, whether or not the sweeper has recorded its end.
    for package in contents.live.iter().filter(|package| !package.last_resort || package.is_available(as_of)) {
        count_live(suites.entry(package.ciphersuite).or_insert_with(|| empty(package.ciphersuite)), package, as_of);
    }
    for &(number, state, n) in &contents.ended {
        let suite = suites.entry(number).or_insert_with(|| empty(number));
        match state {
            State::Spent => suite.spent += n,
            State::Revoked | State::Retired => suite.revoked += n,
            _ => suite.expired += n,
        }
    }
    let ciphersuites: Vec<_> = suites.into_values().map(|suite| finish(suite, watermarks)).collect();
    let sum = |count: fn(&SuiteStatus) -> u64| ciphersuites.iter().map(count).sum::<u64>();
    PoolStatus {
        user: device.user.clone(),
        device: device.device.clone(),
        // Whole seconds, like all times in the database.
        at: Timestamp::from_second(as_of.now.as_second()).unwrap_or(as_of.now),
        min_remaining: as_of.min_remaining.unsigned_abs(),
        available: sum(|s| s.available),
        fresh: sum(|s| s.fresh),
        lapsed: sum(|s| s.lapsed),
        reserved: sum(|s| s.reserved),
        spent: sum(|s| s.spent),
        expired: sum(|s| s.expired),
        revoked: sum(|s| s.revoked),
        total: sum(|s| s.total),
        expiring_soon: sum(|s| s.expiring_soon),
        last_upload: contents.last_upload,
        fenced_at: contents.fenced_at,
        last_resort: LastResortStatus {
            present: ciphersuites.iter().any(|s| s.last_resort.present),
            uses: sum(|s| s.last_resort.uses),
        },
        health: ciphersuites.iter().map(|s| s.health).min().unwrap_or(Health::Empty),
        recommended_upload: if ciphersuites.is_empty() { watermarks.target } else { sum(|s| s.recommended_upload) },
        inventory_digest: digest(&contents.live, as_of),
        draining: draining(&contents.handed_out, watermarks),
        ciphersuites,
        log: None,
    }
}

fn empty(ciphersuite: u16) -> SuiteStatus {
    SuiteStatus {
        ciphersuite,
        available: 0,
        fresh: 0,
        lapsed: 0,
        reserved: 0,
        spent: 0,
        expired: 0,
        revoked: 0,
        total: 0,
        expiring_soon: 0,
        last_resort: LastResortStatus::default(),
        health: Health::Empty,
        recommended_upload: 0,
    }
}

fn count_live(suite: &mut SuiteStatus, package: &LiveKeyPackage, as_of: AsOf) {
    if package.last_resort {
        suite.last_resort = LastResortStatus { present: true, uses: package.uses };
        return;
    }
    match package.state(as_of) {
        State::Available if !package.is_available(as_of) => suite.expired += 1,
        State::Available => {
            let count = if package.reserved_until.is_some() { &mut suite.lapsed } else { &mut suite.fresh };
            *count += 1;
            suite.expiring_soon += u64::from(package.not_after.as_second() - as_of.usable_until() <= SOON);
        }
        State::Reserved => suite.reserved += 1,
        State::Retired => suite.revoked += 1,
        _ => suite.expired += 1,
    }
}

fn draining(handed_out: &BTreeMap<UserName, u64>, watermarks: Watermarks) -> Vec<Drain> {
    let much = (watermarks.target / 2).max(1);
    let mut draining: Vec<_> = handed_out
        .iter()
        .filter(|(_, n)| **n >= much)
        .map(|(user, handed_out)| Drain { user: user.clone(), handed_out: *handed_out })
        .collect();
    draining.sort_by_key(|drain| Reverse(drain.handed_out));
    draining
}

fn finish(mut suite: SuiteStatus, watermarks: Watermarks) -> SuiteStatus {
    suite.available = suite.fresh + suite.lapsed;
    suite.total = suite.available + suite.reserved + suite.spent + suite.revoked + suite.expired;
    suite.health = if suite.available == 0 {
        Health::Empty
    } else if suite.fresh < watermarks.low {
        Health::Low
    } else {
        Health::Good
    };
    suite.recommended_upload = watermarks.target.saturating_sub(suite.fresh);
    suite
}

/// The digest of the available and reserved KeyPackages.
fn digest(live: &[LiveKeyPackage], as_of: AsOf) -> String {
    let is_live = |package: &&LiveKeyPackage| matches!(package.state(as_of), State::Available | State::Reserved);
    inventory_digest(live.iter().filter(is_live).map(|package| &package.keypackage_ref))
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::store::DeviceId;

    const WATERMARKS: Watermarks = Watermarks { target: 32, low: 8 };

    fn second(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn live(byte: u8, not_after: i64, reserved_until: Option<i64>) -> LiveKeyPackage {
        LiveKeyPackage {
            keypackage_ref: vec![byte; 32].into(),
            ciphersuite: 1,
            not_after: second(not_after),
            is_held: reserved_until.is_some(),
            reserved_until: reserved_until.map(second),
            last_resort: false,
            uses: 0,
        }
    }

    fn summary(live: Vec<LiveKeyPackage>, ended: Vec<(u16, State, u64)>) -> PoolStatus {
        let device = DeviceRow {
            id: DeviceId(1),
            user: "alice".parse().unwrap(),
            device: "laptop".parse().unwrap(),
            registered_at: second(0),
        };
        let contents = PoolContents { live, ended, ..PoolContents::default() };
        summarise(&device, &contents, WATERMARKS, AsOf { now: second(1_000), retire: false, min_remaining: 3_600 })
    }

    #[test]
    fn each_package_is_counted_where_time_has_put_it() {
        let month = 30 * 86_400;
        let status = summary(
            vec![
                live(1, month, None),
                live(2, month, Some(1_001)),
                live(3, month, Some(1_000)),
                live(4, 1_000, None),
                live(5, 1_000 + 49 * 3_600, None),
                live(6, 1_001 + 49 * 3_600, None),
                live(7, 1_000 + 3_600, None),
                // Too near to its end to be handed out, but held by an adder who may spend it.
                live(8, 999 + 3_600, Some(1_001)),
                live(9, 999 + 3_600, None),
                live(10, 999 + 3_600, Some(1_000)),
            ],
            vec![(1, State::Spent, 7), (1, State::Revoked, 2), (1, State::Expired, 1)],
        );
        assert_eq!((status.fresh, status.lapsed, status.reserved, status.expired), (4, 1, 2, 4));
        assert_eq!((status.available, status.spent, status.revoked, status.total), (5, 7, 2, 20));
        assert_eq!(status.expiring_soon, 2);
    }

    #[test]
    fn what_ends_too_soon_to_be_handed_out_is_not_there() {
        let ends = |second| {
            let last_resort = LiveKeyPackage { last_resort: true, uses: 3, ..live(9, second, None) };
            summary((1..=8).map(|byte| live(byte, second, None)).chain([last_resort]).collect(), vec![])
        };
        let (in_time, too_soon) = (ends(1_000 + 3_600), ends(999 + 3_600));
        assert_eq!((in_time.available, in_time.health, in_time.recommended_upload), (8, Health::Good, 24));
        assert_eq!((in_time.last_resort.present, in_time.last_resort.uses), (true, 3));
        assert_eq!((too_soon.available, too_soon.health, too_soon.recommended_upload), (0, Health::Empty, 32));
        assert_eq!((too_soon.last_resort.present, too_soon.expired), (false, 8));
        // Both sides still have them.
        assert_eq!(too_soon.inventory_digest, in_time.inventory_digest);
    }

    #[test]
    fn health_and_advice_follow_the_fresh_ones() {
        let month = 30 * 86_400;
        let fresh = |n: u8| (1..=n).map(|byte| live(byte, month, None)).collect::<Vec<_>>();
        assert_eq!(summary(vec![], vec![]).health, Health::Empty);
        assert_eq!(summary(vec![], vec![]).recommended_upload, 32);
        assert_eq!(summary(fresh(7), vec![]).health, Health::Low);
        let good = summary(fresh(8), vec![]);
        assert_eq!((good.health, good.recommended_upload), (Health::Good, 24));
        assert_eq!(summary(vec![live(1, month, Some(1))], vec![]).health, Health::Low);
    }

    #[test]
    fn the_digest_names_the_set_and_not_its_order() {
        let month = 30 * 86_400;
        let one = summary(vec![live(1, month, None), live(2, month, Some(2_000))], vec![]).inventory_digest;
        let two = summary(vec![live(2, month, None), live(1, month, None)], vec![]).inventory_digest;
        assert_eq!(one, two);
        assert_ne!(one, summary(vec![live(1, month, None)], vec![]).inventory_digest);
    }
}
