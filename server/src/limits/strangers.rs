//! Rate limits by address, for requests that show an unknown token or register without one.
//!
//! Addresses count only if the operator names the proxies before the server: behind an unnamed proxy, all clients have
//! the same address.

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use moka::sync::Cache;

use super::rate::{Limiter, Time, limiter, wait};
use crate::{
    clock::Clock,
    config::{self, Config, TrustedProxies},
    problem::{Failure, whole_seconds},
};

/// Requests of one address at once, and then in a minute: many for people who register, and few for an attacker who
/// guesses tokens.
const BURST: u32 = 100;
const PER_MINUTE: u32 = 60;

/// The most addresses that are blocked at the same time. Beyond that, the oldest are unblocked.
const SHUT_OUT: u64 = 100_000;

/// Counts strangers' requests. `None` if they are not counted.
pub(crate) struct Strangers(Option<Counts>);

struct Counts {
    proxies: TrustedProxies,
    time: Time,
    requests: Limiter<IpAddr>,
    /// Blocked addresses, and the clock time at which each is unblocked.
    shut_out: Cache<IpAddr, Duration>,
}

/// The origin of a stranger's request: an IPv4 address, or the /64 of an IPv6 address, which usually is one household.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Origin(Option<IpAddr>);

impl Strangers {
    pub(crate) fn new(config: &Config, clock: Arc<dyn Clock>) -> Self {
        if config.limits == config::Limits::Off || config.trusted_proxies.is_empty() {
            return Self(None);
        }
        let time = Time(clock);
        Self(Some(Counts {
            proxies: config.trusted_proxies.clone(),
            requests: limiter(PER_MINUTE, BURST, &time),
            shut_out: Cache::new(SHUT_OUT),
            time,
        }))
    }

    /// Determines a request's origin from its connection's address and the proxies' header, whose values come in order.
    pub(crate) fn origin<'a>(&self, peer: Option<IpAddr>, forwarded: impl Iterator<Item = &'a str>) -> Origin {
        let (Some(counts), Some(peer)) = (&self.0, peer) else { return Origin(None) };
        let forwarded: Vec<_> = forwarded.collect();
        Origin(Some(household(counts.proxies.client(peer, forwarded.into_iter()))))
    }

    /// Admits a stranger's request.
    ///
    /// # Errors
    /// `too-many-requests` if the address has made too many requests lately.
    pub(crate) fn admit(&self, origin: Origin) -> Result<(), Failure> {
        let (Some(counts), Some(address)) = (&self.0, origin.0) else { return Ok(()) };
        let until = counts.shut_out.get(&address).unwrap_or_default();
        match until.saturating_sub(counts.time.0.elapsed()) {
            Duration::ZERO => Ok(()),
            wait => Err(Failure::too_many(
                format!(
                    "Your address sends many requests without the token of a device. Try again in {} s, and check the token.",
                    whole_seconds(wait)
                ),
                wait,
            )),
        }
    }

    /// Counts a request that came from a stranger.
    pub(crate) fn count(&self, origin: Origin) {
        let (Some(counts), Some(address)) = (&self.0, origin.0) else { return };
        if let Err(until) = counts.requests.check_key(&address) {
            let now = counts.time.0.elapsed();
            counts.shut_out.insert(address, now + wait(&counts.time, &until));
        }
    }

    /// Removes addresses whose limits have refilled.
    pub(super) fn forget(&self) {
        if let Some(counts) = &self.0 {
            counts.requests.retain_recent();
            counts.requests.shrink_to_fit();
        }
    }
}

fn household(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & (!0 << 64)).into(),
    }
}

#[cfg(test)]
mod tests {
    use jiff::{SignedDuration, Timestamp};

    use super::*;
    use crate::clock::ManualClock;

    #[test]
    fn who_tries_tokens_waits_and_others_do_not() {
        let clock = Arc::new(ManualClock::at(Timestamp::from_second(1_800_000_000).unwrap()));
        let proxies = vec!["10.0.0.0/8".to_owned()].try_into().unwrap();
        let strangers = Strangers::new(&Config { trusted_proxies: proxies, ..Config::default() }, clock.clone());
        let origin = |client: &str| strangers.origin(Some("10.0.0.1".parse().unwrap()), std::iter::once(client));
        for n in 0..BURST {
            // One household has many addresses.
            let address = origin(&format!("2001:db8::{n:x}"));
            strangers.admit(address).unwrap();
            strangers.count(address);
        }
        let address = origin("2001:db8::1");
        strangers.admit(address).unwrap();
        strangers.count(address);
        assert_eq!(strangers.admit(address).unwrap_err().retry_after, Some(Duration::from_secs(1)));
        strangers.admit(origin("2001:db8:0:1::1")).unwrap();
        strangers.forget();
        assert!(strangers.admit(address).is_err());
        clock.advance(SignedDuration::from_secs(1));
        strangers.admit(address).unwrap();
    }

    #[test]
    fn nobody_is_counted_where_no_proxy_is_named() {
        let clock = Arc::new(ManualClock::at(Timestamp::from_second(1_800_000_000).unwrap()));
        let strangers = Strangers::new(&Config::default(), clock);
        let origin = strangers.origin(Some("10.0.0.1".parse().unwrap()), std::iter::empty());
        for _ in 0..10 * BURST {
            strangers.admit(origin).unwrap();
            strangers.count(origin);
        }
    }
}
