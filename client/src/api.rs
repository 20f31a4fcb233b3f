//! The server's HTTP API.

mod address;
mod call;
#[cfg(feature = "http")]
mod default_transport;
mod failures;
mod log;

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use backon::{ExponentialBuilder, Retryable};
use http::{Request, Response};
use jiff::SignedDuration;
use keypool_openapi::{
    AckRequest, AckResponse, AuditPage, AuditQuery, CommitRequest, CommitResponse, DeviceLinks, DeviceList, DeviceName,
    DevicesQuery, GroupId, GroupInfoRequest, GroupInfoResponse, GroupList, GroupsQuery, InventoryItem, InventoryPage,
    InventoryQuery, KeptGroupInfo, LookupRequest, LookupResponse, MessageRequest, MessageResponse, MessagesPage,
    MessagesQuery, NewDeviceLink, PoolStatus, RegisterRequest, RegisterResponse, ReleaseRequest, ReleaseResponse,
    RemovedDevice, ReserveRequest, ReserveResponse, RevokeRequest, RevokeResponse, SpendRequest, SpendResponse,
    TokenResponse, UploadRequest, UploadResponse, UserName,
};
use parking_lot::RwLock;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use secrecy::SecretString;
use serde::{Deserialize, de::DeserializeOwned};
use tokio::time::timeout;
use tracing::info;
use uuid::Uuid;

pub use self::address::is_in_the_clear;
pub(crate) use self::address::server_address;
use self::{
    call::Call,
    failures::{date, refusal, retry_after, unreachable},
};
use crate::{
    clock::{Clock as _, SystemClock, skew},
    error::{Error, Result},
    finding::Finding,
    transport::{Transport, TransportError},
};

/// How long a call asks again while nothing listens at the server's address. A server that starts anew is there by then.
const REFUSED_TIMEOUT: Duration = Duration::from_secs(5);

/// The timeout of one attempt.
const TRY_TIMEOUT: Duration = Duration::from_secs(30);

/// The default timeout of a call with all its attempts; see [`ApiClient::with_timeout`].
pub const DEFAULT_TIMEOUT: Duration = Duration::from_mins(1);

/// All but the characters that a path has as they are (RFC 3986, section 2.3).
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The number of items in one page of the inventory.
const PAGE: u32 = 1_000;

/// The largest number of inventory pages that are read. A pool has a few hundred KeyPackages, including those that
/// ended and have not reached their `not_after`.
const MAX_PAGES: usize = 100;

/// The largest number of bytes of an answer that are read. A Keypool server sends up to 4 MiB of KeyPackages or
/// messages, in base64, and one more of up to 1 MiB.
const MAX_ANSWER: usize = 32 * 1024 * 1024;

/// Keypool's HTTP API with typed calls. A problem document becomes [`Error::Refused`].
///
/// Every call is safe to repeat. If the server is unreachable or busy, the client repeats it with growing waits, for at
/// most [`DEFAULT_TIMEOUT`], and respects `Retry-After`.
#[derive(Clone)]
pub struct ApiClient {
    transport: Arc<dyn Transport>,
    server: String,
    /// Clones share it.
    token: Arc<RwLock<Option<SecretString>>>,
    timeout: Duration,
    on_retry: Option<OnRetry>,
    /// How far this machine's clock is ahead of the server's, by the last answer. Clones share it.
    clock_ahead: Arc<RwLock<Option<SignedDuration>>>,
    /// Why the server is not to be used any more. Clones share it.
    finding: Arc<RwLock<Option<Finding>>>,
}

/// What is called before a call is repeated: with the error, and the time since the call began.
pub type OnRetry = Arc<dyn Fn(&Error, Duration) + Send + Sync>;

impl fmt::Debug for ApiClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiClient").field("server", &self.server).finish_non_exhaustive()
    }
}

impl ApiClient {
    /// A client of the server at `server` that acts as the device with this `token`. Only [`ApiClient::register`] works
    /// without a token.
    #[cfg(feature = "http")]
    pub fn new(server: &str, token: Option<SecretString>) -> Result<Self> {
        Self::with_transport(server, token, Arc::new(default_transport::client()?))
    }

    /// Like `ApiClient::new`, and sends requests by a given transport: for example, by a `reqwest::Client` with a proxy or with
    /// certificates of its own.
    pub fn with_transport(server: &str, token: Option<SecretString>, transport: Arc<dyn Transport>) -> Result<Self> {
        let server = server_address(server)?;
        let (token, clock_ahead, finding) = (Arc::new(RwLock::new(token)), Arc::default(), Arc::default());
        Ok(Self { transport, server, token, timeout: DEFAULT_TIMEOUT, on_retry: None, clock_ahead, finding })
    }

    /// Whether calls carry a token.
    #[cfg(feature = "sqlite")]
    pub(crate) fn has_token(&self) -> bool {
        self.token.read().is_some()
    }

    /// Uses another token from now on, for example that of a registration. So do all clones.
    pub fn set_token(&self, token: Option<SecretString>) {
        *self.token.write() = token;
    }

    /// Sets the timeout of a call with all its attempts. A call that waits on the server for a message may take as long
    /// as that wait.
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Has a function called before each repetition, so that people see why they wait.
    #[must_use]
    pub fn with_on_retry(self, on_retry: Option<OnRetry>) -> Self {
        Self { on_retry, ..self }
    }

    /// How far this machine's clock is ahead of the server's, by the `Date` of the last answer; negative if it is behind.
    /// `None` if no answer had a date.
    #[must_use]
    pub fn clock_ahead(&self) -> Option<SignedDuration> {
        *self.clock_ahead.read()
    }

    /// The server's address, normalised.
    #[must_use]
    pub fn server(&self) -> &str {
        &self.server
    }

    /// Registers a device. For another device of a known user, this client's token must belong to that user. With an
    /// Idempotency-Key, which is a secret, the call may be repeated.
    pub async fn register(&self, request: &RegisterRequest, key: Option<&str>) -> Result<RegisterResponse> {
        let call = Call::post("devices", request)?;
        match key {
            Some(key) => self.call(call.with_key(key)).await,
            None => self.attempt(&call, TRY_TIMEOUT).await,
        }
    }

    /// A user's devices.
    pub async fn devices(&self, user: &UserName) -> Result<DeviceList> {
        self.call(Call::get(&devices_path(user))).await
    }

    /// A user's devices, removed ones included.
    pub async fn devices_with_removed(&self, user: &UserName) -> Result<DeviceList> {
        let query = DevicesQuery { removed: Some(true) };
        self.call(Call::get(&devices_path(user)).query(&query)?).await
    }

    /// Makes a code with which a further device of the user registers. The call is not repeated after a lost answer: another code
    /// would end the first.
    pub async fn make_device_link(&self) -> Result<NewDeviceLink> {
        self.attempt(&Call::post_nothing("devices/links"), TRY_TIMEOUT).await
    }

    /// The codes that the user's devices made, and the devices that used them.
    pub async fn device_links(&self) -> Result<DeviceLinks> {
        self.call(Call::get("devices/links")).await
    }

    /// Removes one of the user's own devices.
    pub async fn remove_device(&self, device: &DeviceName) -> Result<RemovedDevice> {
        self.call(Call::delete(&format!("devices/{device}"))).await
    }

    /// Gives one of the user's own devices a new bearer token. The call is not repeated after a lost answer: the token
    /// that it made would end again.
    pub async fn new_token(&self, device: &DeviceName) -> Result<TokenResponse> {
        self.attempt(&Call::post_nothing(&format!("devices/{device}/token")), TRY_TIMEOUT).await
    }

    /// The devices of up to [`keypool_openapi::MAX_LOOKUP_USERS`] users, with their signature keys.
    pub async fn look_up_devices(&self, request: &LookupRequest) -> Result<LookupResponse> {
        self.call(Call::post("devices/lookup", request)?).await
    }

    /// Uploads KeyPackages, at most [`keypool_openapi::MAX_UPLOAD_BATCH`].
    pub async fn upload_key_packages(&self, request: &UploadRequest) -> Result<UploadResponse> {
        self.call(Call::post("keypackages/upload", request)?).await
    }

    /// Reserves a KeyPackage of each of a user's devices. All attempts carry one `Idempotency-Key`, so that a lost
    /// answer leaves no unknown reservation.
    pub async fn reserve_key_package(&self, request: &ReserveRequest) -> Result<ReserveResponse> {
        let key = Uuid::new_v4().to_string();
        self.call(Call::post("keypackages/reserve", request)?.with_key(&key)).await
    }

    /// Spends a reservation: its KeyPackage is in a Commit.
    pub async fn spend_key_package(&self, request: &SpendRequest) -> Result<SpendResponse> {
        self.call(Call::post("keypackages/spend", request)?).await
    }

    /// Releases a reservation.
    pub async fn release_key_package(&self, request: &ReleaseRequest) -> Result<ReleaseResponse> {
        self.call(Call::post("keypackages/release", request)?).await
    }

    /// Revokes KeyPackages of the device's own pool, at most [`keypool_openapi::MAX_REVOCATIONS`] by their refs.
    pub async fn revoke_key_packages(&self, request: &RevokeRequest) -> Result<RevokeResponse> {
        self.call(Call::post("keypackages/revoke", request)?).await
    }

    /// The status of the device's own pool.
    pub async fn get_key_package_status(&self) -> Result<PoolStatus> {
        self.get_key_package_status_since(None).await
    }

    /// The server's inventory of the device's own KeyPackages, sorted by ref. Fails if the server sends too many pages.
    pub async fn get_inventory(&self) -> Result<Vec<InventoryItem>> {
        let mut items = Vec::new();
        let mut query = InventoryQuery { after: None, limit: Some(PAGE) };
        for _ in 0..MAX_PAGES {
            let page: InventoryPage = self.call(Call::get("keypackages/inventory").query(&query)?).await?;
            self.check_page(page.keypackages.len(), PAGE)?;
            items.extend(page.keypackages);
            match page.next {
                None => return Ok(items),
                next if next <= query.after => {
                    return Err(self.unexpected("the next page of the inventory begins before the one that it follows"));
                }
                next => query.after = next,
            }
        }
        Err(self.unexpected(format!("the inventory has more than {MAX_PAGES} pages of {PAGE}")))
    }

    /// Checks that a page has at most as many items as requested.
    fn check_page(&self, found: usize, limit: u32) -> Result<()> {
        if usize::try_from(limit).is_ok_and(|limit| found > limit) {
            return Err(self.unexpected(format!("{found} items on a page, although {limit} were requested")));
        }
        Ok(())
    }

    /// The error for a readable answer that a Keypool server would not give.
    pub(crate) fn unexpected(&self, found: impl Into<String>) -> Error {
        self.misunderstood(200, found.into(), None)
    }

    /// The audit trail of the device's own KeyPackages, newest first: at most `limit` events, older than the event
    /// `before`.
    pub async fn get_audit_trail(&self, before: Option<i64>, limit: u32) -> Result<AuditPage> {
        let query = AuditQuery { user: None, before, limit: Some(limit) };
        self.call(Call::get("keypackages/audit").query(&query)?).await
    }

    /// Commits to a group. The server applies the whole request, or nothing.
    pub async fn commit(&self, group_id: &GroupId, request: &CommitRequest) -> Result<CommitResponse> {
        self.call(Call::post(&format!("groups/{group_id}/commits"), request)?).await
    }

    /// The GroupInfo of a group's current epoch, for a device of a user who has a device in the group.
    pub async fn group_info(&self, group_id: &GroupId) -> Result<GroupInfoResponse> {
        self.call(Call::get(&format!("groups/{group_id}/info"))).await
    }

    /// Keeps the GroupInfo of a group whose newest Commit brought none.
    pub async fn keep_group_info(&self, group_id: &GroupId, request: &GroupInfoRequest) -> Result<KeptGroupInfo> {
        self.call(Call::put(&format!("groups/{group_id}/info"), request)?).await
    }

    /// The groups in which devices of the user are, as far as their GroupInfos are kept.
    pub async fn groups(&self, query: &GroupsQuery) -> Result<GroupList> {
        self.call(Call::get("groups").query(query)?).await
    }

    /// Sends a message to members of a group. After a lost answer it may be queued twice: receivers detect that through
    /// MLS.
    pub async fn send_message(&self, group_id: &GroupId, request: &MessageRequest) -> Result<MessageResponse> {
        self.call(Call::post(&format!("groups/{group_id}/messages"), request)?).await
    }

    /// The oldest messages in the device's own queue, at most `limit`. If the queue is empty, waits up to `wait`
    /// seconds, at most 60. Does not wait if the list of the user's devices has changed since `devices_version`, which
    /// an earlier page contained.
    pub async fn messages(&self, wait: u32, limit: u32, devices_version: Option<u64>) -> Result<MessagesPage> {
        let query = MessagesQuery { wait: Some(wait), limit: Some(limit), devices_version };
        let call = Call::get("messages").query(&query)?;
        let page: MessagesPage = match self.call_that_waits(Duration::from_secs(wait.into()), call).await {
            // A proxy waits for a shorter time than the server does: nothing came until then.
            Err(Error::Answer { status: 504, .. }) if wait > 0 => {
                let devices_version = devices_version.unwrap_or_default();
                return Ok(MessagesPage { messages: Vec::new(), devices_version });
            }
            page => page?,
        };
        self.check_page(page.messages.len(), limit)?;
        Ok(page)
    }

    /// Removes messages from the device's own queue.
    pub async fn acknowledge(&self, request: &AckRequest) -> Result<AckResponse> {
        self.call(Call::post("messages/ack", request)?).await
    }

    /// The version of the server.
    pub async fn server_version(&self) -> Result<String> {
        let document: Document = self.call(Call::get("openapi.json")).await?;
        Ok(document.info.version)
    }

    /// Repeats a call until it is answered or the timeout ends.
    async fn call<T: DeserializeOwned>(&self, call: Call) -> Result<T> {
        self.call_that_waits(Duration::ZERO, call).await
    }

    /// Like [`Self::call`], for a call that the server may answer after `wait`.
    async fn call_that_waits<T: DeserializeOwned>(&self, wait: Duration, call: Call) -> Result<T> {
        let started = Instant::now();
        let deadline = self.timeout.max(wait + TRY_TIMEOUT.min(self.timeout));
        let left = || deadline.saturating_sub(started.elapsed());
        let may_pass = |error: &Error| match error {
            Error::Unreachable { source: TransportError::Connect(_), .. } => started.elapsed() < REFUSED_TIMEOUT,
            // No attempt within this call helps.
            Error::UnknownHost { .. } => false,
            Error::Answer { status: 504, .. } if !wait.is_zero() => false,
            error => error.is_retryable(),
        };
        let waits = ExponentialBuilder::new()
            .with_min_delay(Duration::from_millis(100))
            .with_max_delay(Duration::from_secs(5))
            .without_max_times()
            .with_jitter();
        (async || self.attempt(&call, (wait + TRY_TIMEOUT).min(left())).await)
            .retry(waits)
            .when(|error: &Error| may_pass(error) && error.retry_after().unwrap_or_default() < left())
            .adjust(|error, wait| {
                let wait = wait?.max(error.retry_after().unwrap_or_default());
                (wait < left()).then_some(wait)
            })
            .notify(|error, wait| {
                info!(%error, ?wait, "trying again");
                if let Some(on_retry) = &self.on_retry {
                    on_retry(error, started.elapsed());
                }
            })
            .await
    }

    /// Makes a call once. It fails if there is no answer within `limit`.
    async fn attempt<T: DeserializeOwned>(&self, call: &Call, limit: Duration) -> Result<T> {
        let body = self.attempt_bytes(call, limit).await?;
        serde_json::from_slice(&body).map_err(|error| self.misunderstood(200, error.to_string(), None))
    }

    /// Makes a call once, and gives the body of the answer.
    async fn attempt_bytes(&self, call: &Call, limit: Duration) -> Result<Vec<u8>> {
        self.check_trust()?;
        let request: Request<Vec<u8>> = call.request(&self.server, self.token.read().as_ref())?;
        let answer = timeout(limit, self.transport.send(request, MAX_ANSWER)).await;
        let answer: Response<Vec<u8>> = answer
            .unwrap_or(Err(TransportError::Timeout(limit)))
            .map_err(|error| unreachable(self.server.clone(), error))?;
        if let Some(there) = date(answer.headers()) {
            *self.clock_ahead.write() = Some(skew(SystemClock.now(), there));
        }
        let (status, retry_after) = (answer.status().as_u16(), retry_after(answer.headers()));
        if answer.body().len() > MAX_ANSWER {
            return Err(self.misunderstood(status, format!("more than {MAX_ANSWER} bytes"), retry_after));
        }
        if answer.status().is_success() {
            Ok(answer.into_body())
        } else {
            Err(refusal(status, answer.body(), retry_after).unwrap_or_else(|| {
                let beginning = String::from_utf8_lossy(answer.body()).chars().take(200).collect();
                self.misunderstood(status, beginning, retry_after)
            }))
        }
    }

    fn misunderstood(&self, status: u16, found: String, retry_after: Option<Duration>) -> Error {
        Error::Answer { server: self.server.clone(), status, found, retry_after }
    }
}

/// The part of the OpenAPI document that is used.
#[derive(Deserialize)]
struct Document {
    info: DocumentInfo,
}

#[derive(Deserialize)]
struct DocumentInfo {
    version: String,
}

/// The path of a user's devices. The name may have any character.
fn devices_path(user: &UserName) -> String {
    format!("users/{}/devices", utf8_percent_encode(user.as_str(), UNRESERVED))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_never_shows_in_debug() {
        let client = ApiClient::new("http://localhost:1", Some("keypool_hush".into())).unwrap();
        assert!(!format!("{client:?}").contains("hush"));
    }
}
