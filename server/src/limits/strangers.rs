//! Requests of strangers, counted by address: of those who show a token that no device has, or who register without one.
//!
//! Addresses count only where the operator names the proxies before the server: behind a proxy that is not named, all clients
//! have the same.

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use actix_web::{HttpRequest, http::header::HeaderName};
use moka::sync::Cache;

use super::{Limiter, Time, limiter, seconds, wait};
use crate::{
    clock::Clock,
    config::{self, Config, TrustedProxies},
    problem::Failure,
};

/// Requests at once, and then in a minute, of one address: much for people who register, and little for who tries tokens.
const BURST: u32 = 100;
const PER_MINUTE: u32 = 60;

/// Addresses that are shut out at the same time at most. Where there are more, the oldest come in again.
const SHUT_OUT: u64 = 100_000;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// What strangers ask for. `None` where it is not counted.
pub(crate) struct Strangers(Option<Counts>);

struct Counts {
    proxies: TrustedProxies,
    time: Time,
    requests: Limiter<IpAddr>,
    /// Who asked for too much, and until which moment of the clock they wait.
    shut_out: Cache<IpAddr, Duration>,
}

/// Where a stranger's request comes from: an IPv4 address, or the /64 of an IPv6 address, which is one household's.
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

    /// Where a request comes from.
    pub(crate) fn origin(&self, request: &HttpRequest) -> Origin {
        let address = || {
            let (counts, peer) = (self.0.as_ref()?, request.peer_addr()?.ip());
            // What is no text ends what is believed, as anything else does that is no address.
            let forwarded = request.headers().get_all(FORWARDED_FOR).map(|value| value.to_str().unwrap_or_default());
            let forwarded: Vec<_> = forwarded.collect();
            Some(household(counts.proxies.client(peer, forwarded.into_iter())))
        };
        Origin(address())
    }

    /// Lets a stranger in.
    ///
    /// # Errors
    /// `too-many-requests` for who asked for too much lately.
    pub(crate) fn admit(&self, origin: Origin) -> Result<(), Failure> {
        let (Some(counts), Some(address)) = (&self.0, origin.0) else { return Ok(()) };
        let until = counts.shut_out.get(&address).unwrap_or_default();
        match until.saturating_sub(counts.time.0.elapsed()) {
            Duration::ZERO => Ok(()),
            wait => Err(Failure::too_many(
                format!(
                    "Your address sends many requests without the token of a device. Try again in {} s, and check the token.",
                    seconds(wait)
                ),
                wait,
            )),
        }
    }

    /// Counts a request of somebody who turned out to be a stranger.
    pub(crate) fn count(&self, origin: Origin) {
        let (Some(counts), Some(address)) = (&self.0, origin.0) else { return };
        if let Err(until) = counts.requests.check_key(&address) {
            let now = counts.time.0.elapsed();
            counts.shut_out.insert(address, now + wait(&counts.time, &until));
        }
    }

    /// Forgets addresses whose limits have refilled.
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
    use actix_web::test::TestRequest;
    use jiff::{SignedDuration, Timestamp};

    use super::*;
    use crate::clock::ManualClock;

    #[test]
    fn who_tries_tokens_waits_and_others_do_not() {
        let clock = Arc::new(ManualClock::at(Timestamp::from_second(1_800_000_000).unwrap()));
        let proxies = vec!["10.0.0.0/8".to_owned()].try_into().unwrap();
        let strangers = Strangers::new(&Config { trusted_proxies: proxies, ..Config::default() }, clock.clone());
        let origin = |client: &str| {
            let peer = "10.0.0.1:80".parse().unwrap();
            let request = TestRequest::get().peer_addr(peer).insert_header((FORWARDED_FOR, client));
            strangers.origin(&request.to_http_request())
        };
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
        let request = TestRequest::get().peer_addr("10.0.0.1:80".parse().unwrap()).to_http_request();
        let origin = strangers.origin(&request);
        for _ in 0..10 * BURST {
            strangers.admit(origin).unwrap();
            strangers.count(origin);
        }
    }
}
