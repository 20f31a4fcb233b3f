//! The requests of a load, with their callers and owners.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use anyhow::{Result, ensure};
use hyper::{Method, body::Bytes};
use rand::{RngExt, rngs::SmallRng};

use crate::http::Call;

/// A part of the answer to an upload that was accepted as a whole.
const NONE_REJECTED: &[u8] = br#""rejected":[]"#;

/// One kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Reserves a KeyPackage of a random user.
    Reserve,
    /// The same with an `Idempotency-Key`.
    Repeatable,
    /// Spends the newest reservation of the connection.
    Spend,
    /// Uploads KeyPackages into their owner's pool.
    Upload,
    /// Reads the status of the caller's pool.
    Status,
    /// Requests `/healthz`.
    Health,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Reserve => "reserve",
            Self::Repeatable => "repeatable reserve",
            Self::Spend => "spend",
            Self::Upload => "upload",
            Self::Status => "status",
            Self::Health => "healthz",
        }
    }
}

/// Kinds of requests with their shares.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mix(&'static [(Kind, u32)]);

impl Mix {
    pub(crate) const RESERVE: Self = Self(&[(Kind::Reserve, 1)]);
    pub(crate) const REPEATABLE: Self = Self(&[(Kind::Repeatable, 1)]);
    /// A connection without a reservation reserves first, so each reservation is followed by one spend.
    pub(crate) const SPEND: Self = Self(&[(Kind::Spend, 1)]);
    pub(crate) const UPLOAD: Self = Self(&[(Kind::Upload, 1)]);
    pub(crate) const STATUS: Self = Self(&[(Kind::Status, 1)]);
    pub(crate) const HEALTH: Self = Self(&[(Kind::Health, 1)]);
    /// The usual mix of clients without their uploads, of which the transparency log has nothing.
    pub(crate) const WITHOUT_UPLOADS: Self = Self(&[(Kind::Status, 60), (Kind::Reserve, 20), (Kind::Spend, 15)]);
    /// The usual mix of clients: refresh pools, invite, and replace used KeyPackages.
    pub(crate) const MIXED: Self =
        Self(&[(Kind::Status, 60), (Kind::Reserve, 20), (Kind::Spend, 15), (Kind::Upload, 5)]);

    fn total(self) -> u32 {
        self.0.iter().map(|(_, share)| share).sum()
    }

    /// The kind that a number below the total of the shares selects.
    fn at(self, mut number: u32) -> Option<Kind> {
        self.0.iter().find_map(|&(kind, share)| {
            if number < share {
                return Some(kind);
            }
            number -= share;
            None
        })
    }
}

/// A prepared upload.
#[derive(Clone, Debug)]
pub(crate) struct Upload {
    /// The owner's token.
    pub token: String,
    pub body: Bytes,
}

impl Upload {
    /// Builds an upload from KeyPackages in base64.
    pub(crate) fn new(token: &str, keypackages: &[String]) -> Result<Self> {
        let body = serde_json::to_vec(&serde_json::json!({ "keypackages": keypackages }))?;
        Ok(Self { token: token.to_owned(), body: body.into() })
    }
}

/// The callers and owners of a load.
#[derive(Debug)]
pub(crate) struct Cast {
    /// The server's address, such as `127.0.0.1:8080`.
    pub address: String,
    /// The callers' tokens, which the connections use in turns.
    pub adders: Vec<String>,
    /// The owners' names begin with this, followed by 1 to `users`.
    pub prefix: String,
    pub users: u64,
    uploads: Vec<Upload>,
    uploaded: AtomicUsize,
    /// Fields of a reserve and of a spend that ask for receipts, or nothing.
    receipts: &'static str,
}

/// What asks for a receipt. A server takes any 32 bytes.
const RECEIPTS: &str = r#","bind":"BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=","proof":"receipt""#;

impl Cast {
    pub(crate) fn new(address: String, adders: Vec<String>, (prefix, users): (&str, u64)) -> Self {
        let prefix = prefix.to_owned();
        Self { address, adders, prefix, users, uploads: Vec::new(), uploaded: AtomicUsize::new(0), receipts: "" }
    }

    /// The same callers, who ask for receipts of the transparency log.
    pub(crate) fn with_receipts(&self) -> Self {
        let (address, adders) = (self.address.clone(), self.adders.clone());
        Self { receipts: RECEIPTS, ..Self::new(address, adders, (&self.prefix, self.users)) }
    }

    /// Adds the uploads, each of which is sent once.
    pub(crate) fn with_uploads(self, uploads: Vec<Upload>) -> Self {
        Self { uploads, ..self }
    }

    /// The number of remaining uploads.
    pub(crate) fn uploads_left(&self) -> usize {
        self.uploads.len().saturating_sub(self.uploaded.load(Ordering::Relaxed))
    }
}

/// The caller of one connection.
#[derive(Debug)]
pub(crate) struct Caller {
    cast: Arc<Cast>,
    number: usize,
    rng: SmallRng,
    /// Reservations, newest last. The newest is spent first, since the oldest may have lapsed.
    held: Vec<String>,
}

impl Caller {
    pub(crate) fn new(cast: Arc<Cast>, number: usize) -> Self {
        Self { cast, number, rng: rand::make_rng(), held: Vec::new() }
    }

    /// The next request of a mix; `None` when nothing is left to upload.
    pub(crate) fn next(&mut self, mix: Mix) -> Option<(Kind, Call<'_>)> {
        let kind = mix.at(self.rng.random_range(0..mix.total()))?;
        let token = self.cast.adders.get(self.number % self.cast.adders.len().max(1)).map(String::as_str);
        let post = |path, body: String| Call { method: Method::POST, path, token, key: None, body: body.into() };
        let get = |path, token| Call { method: Method::GET, path, token, key: None, body: Bytes::new() };
        let spent = (kind == Kind::Spend).then(|| self.held.pop()).flatten();
        Some(match (kind, spent) {
            (Kind::Spend, Some(reservation)) => {
                let receipts = self.cast.receipts;
                let body = format!(r#"{{"reservation_id":"{reservation}","group_id":"ZnJpZW5kcw=="{receipts}}}"#);
                (kind, post("/keypackages/spend", body))
            }
            (Kind::Reserve | Kind::Repeatable | Kind::Spend, _) => {
                let user = self.rng.random_range(1..=self.cast.users);
                let body = format!(r#"{{"target_user":"{}{user}"{}}}"#, self.cast.prefix, self.cast.receipts);
                let call = post("/keypackages/reserve", body);
                if kind == Kind::Repeatable {
                    let key = format!("{:032x}", self.rng.random::<u128>());
                    (kind, Call { key: Some(key), ..call })
                } else {
                    (Kind::Reserve, call)
                }
            }
            (Kind::Upload, _) => {
                let upload = self.cast.uploads.get(self.cast.uploaded.fetch_add(1, Ordering::Relaxed))?;
                let (path, token) = ("/keypackages/upload", Some(upload.token.as_str()));
                (kind, Call { method: Method::POST, path, token, key: None, body: upload.body.clone() })
            }
            (Kind::Status, _) => (kind, get("/keypackages/status", token)),
            (Kind::Health, _) => (kind, get("/healthz", None)),
        })
    }

    /// Records a reservation; checks that an upload was accepted.
    pub(crate) fn learn(&mut self, kind: Kind, answer: &[u8]) -> Result<()> {
        match kind {
            Kind::Reserve | Kind::Repeatable => self.held.extend(reservation_id(answer).map(str::to_owned)),
            Kind::Upload => ensure!(
                answer.windows(NONE_REJECTED.len()).any(|part| part == NONE_REJECTED),
                "the server rejected KeyPackages of an upload: {}",
                String::from_utf8_lossy(answer)
            ),
            Kind::Spend | Kind::Status | Kind::Health => {}
        }
        Ok(())
    }
}

/// Parsed by hand: an answer is mostly a KeyPackage, which the driver does not need.
fn reservation_id(answer: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(answer).ok()?;
    text.split_once(r#""reservation_id":""#)?.1.split('"').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cast() -> Cast {
        Cast::new("localhost:1".to_owned(), vec!["a".to_owned(), "b".to_owned()], ("user-", 7))
    }

    #[test]
    fn the_mix_has_its_shares() {
        let drawn: Vec<_> = (0..Mix::MIXED.total()).filter_map(|number| Mix::MIXED.at(number)).collect();
        let count = |kind| drawn.iter().filter(|drawn| **drawn == kind).count();
        assert_eq!([Kind::Status, Kind::Reserve, Kind::Spend, Kind::Upload].map(count), [60, 20, 15, 5]);
        assert_eq!(drawn.len(), 100);
    }

    #[test]
    fn who_holds_nothing_reserves_and_then_spends_it() {
        let mut caller = Caller::new(Arc::new(cast()), 1);
        assert_eq!(caller.next(Mix::SPEND).unwrap().0, Kind::Reserve);
        caller.learn(Kind::Reserve, br#"{"reservations":[{"reservation_id":"7.x","user":"user-1"}]}"#).unwrap();
        let (kind, call) = caller.next(Mix::SPEND).unwrap();
        assert_eq!((kind, call.token), (Kind::Spend, Some("b")));
        assert!(String::from_utf8_lossy(&call.body).contains(r#""reservation_id":"7.x""#));
        assert_eq!(caller.next(Mix::SPEND).unwrap().0, Kind::Reserve);
    }

    #[test]
    fn each_upload_is_sent_once_by_its_owner() {
        let uploads = vec![Upload::new("owner", &["AAAA".to_owned()]).unwrap()];
        let mut caller = Caller::new(Arc::new(cast().with_uploads(uploads)), 0);
        let (_, call) = caller.next(Mix::UPLOAD).unwrap();
        assert_eq!((call.token, &call.body[..]), (Some("owner"), &br#"{"keypackages":["AAAA"]}"#[..]));
        assert!(caller.next(Mix::UPLOAD).is_none());
        assert!(caller.learn(Kind::Upload, br#"{"accepted":[],"rejected":[{"index":0}]}"#).is_err());
        assert!(caller.learn(Kind::Upload, br#"{"accepted":[{}],"rejected":[],"pool":{}}"#).is_ok());
        assert_eq!(caller.cast.uploads_left(), 0);
    }
}
