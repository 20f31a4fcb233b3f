//! How a pool is doing: counts, health, and the digest of its inventory.

use std::{cmp::Reverse, collections::BTreeMap};

use jiff::{SignedDuration, Timestamp};
use keypool_openapi::{Drain, Health, LastResortStatus, PoolStatus, State, SuiteStatus, UserName};
use sha2::{Digest, Sha256};

use crate::store::{AsOf, DeviceRow, LiveKeyPackage, PoolContents};

/// A user who was handed out half of a pool within this time is shown as draining it.
const DRAIN_SPAN: SignedDuration = SignedDuration::from_hours(1);

/// What expires within this span counts as expiring soon.
const SOON: SignedDuration = SignedDuration::from_hours(48);

/// Between which counts of fresh KeyPackages a pool is how healthy.
#[derive(Clone, Copy, Debug)]
pub(super) struct Watermarks {
    /// What a full pool has.
    pub target: u64,
    /// Below this a pool is low.
    pub low: u64,
}

/// From when on what was handed out counts as draining.
pub(super) fn draining_since(now: Timestamp) -> Timestamp {
    now.saturating_sub(DRAIN_SPAN).unwrap_or(Timestamp::MIN)
}

pub(super) fn summarise(
    device: &DeviceRow,
    contents: &PoolContents,
    watermarks: Watermarks,
    as_of: AsOf,
) -> PoolStatus {
    let mut suites: BTreeMap<u16, SuiteStatus> = BTreeMap::new();
    // A last resort that is over is nothing, whether or not that has been noted.
    for package in contents.live.iter().filter(|p| !p.last_resort || as_of.state_of(p) == State::Available) {
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
        // Whole seconds, as all times that the database keeps.
        at: Timestamp::from_second(as_of.now.as_second()).unwrap_or(as_of.now),
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
    let state = as_of.state_of(package);
    match state {
        State::Available if package.reserved_until.is_some() => suite.lapsed += 1,
        State::Available => suite.fresh += 1,
        State::Reserved => suite.reserved += 1,
        State::Retired => suite.revoked += 1,
        _ => suite.expired += 1,
    }
    if state == State::Available && package.not_after.duration_since(as_of.now) <= SOON {
        suite.expiring_soon += 1;
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

/// SHA-256 over the sorted refs of what is available or reserved, lower-case hex.
fn digest(live: &[LiveKeyPackage], as_of: AsOf) -> String {
    let mut refs: Vec<_> = live
        .iter()
        .filter(|package| matches!(as_of.state_of(package), State::Available | State::Reserved))
        .map(|package| &package.keypackage_ref)
        .collect();
    refs.sort_unstable();
    let mut hash = Sha256::new();
    for keypackage_ref in refs {
        hash.update(keypackage_ref.as_bytes());
    }
    hex::encode(hash.finalize())
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
        summarise(&device, &contents, WATERMARKS, AsOf { now: second(1_000), retire: false })
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
                live(5, 1_000 + 48 * 3_600, None),
            ],
            vec![(1, State::Spent, 7), (1, State::Revoked, 2), (1, State::Expired, 1)],
        );
        assert_eq!((status.fresh, status.lapsed, status.reserved, status.expired), (2, 1, 1, 2));
        assert_eq!((status.available, status.spent, status.revoked, status.total), (3, 7, 2, 15));
        assert_eq!(status.expiring_soon, 1);
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
