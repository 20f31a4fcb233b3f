//! The server's HTTP API.

mod failures;

use std::{
    fmt,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use backon::{ExponentialBuilder, Retryable};
use keypool_openapi::{
    AckRequest, AckResponse, AuditPage, AuditQuery, CommitRequest, CommitResponse, DeviceList, DeviceName,
    DevicesQuery, GroupId, InventoryItem, InventoryPage, InventoryQuery, LookupRequest, LookupResponse, MessageRequest,
    MessageResponse, MessagesPage, MessagesQuery, PoolStatus, RegisterRequest, RegisterResponse, ReleaseRequest,
    ReleaseResponse, RemovedDevice, ReserveRequest, ReserveResponse, RevokeRequest, RevokeResponse, SpendRequest,
    SpendResponse, TokenResponse, UploadRequest, UploadResponse, UserName,
};
use parking_lot::RwLock;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Method, RequestBuilder, Response, Url};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, de::DeserializeOwned};
use tracing::info;
use uuid::Uuid;

use self::failures::{refusal, retry_after, unreachable};
use crate::error::{Error, Result};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

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

const IDEMPOTENCY_KEY: &str = "Idempotency-Key";

/// Keypool's HTTP API with typed calls. A problem document becomes [`Error::Refused`].
///
/// Every call is safe to repeat. If the server is unreachable or busy, the client repeats it with growing waits, for at
/// most [`DEFAULT_TIMEOUT`], and respects `Retry-After`.
#[derive(Clone)]
pub struct ApiClient {
    http: reqwest::Client,
    server: Url,
    /// Clones share it.
    token: Arc<RwLock<Option<SecretString>>>,
    timeout: Duration,
    on_retry: Option<OnRetry>,
}

/// What is called before a call is repeated: with the error, and the time since the call began.
pub type OnRetry = Arc<dyn Fn(&Error, Duration) + Send + Sync>;

impl fmt::Debug for ApiClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiClient").field("server", &self.server.as_str()).finish_non_exhaustive()
    }
}

impl ApiClient {
    /// A client of the server at `server` that acts as the device with this `token`. Only [`ApiClient::register`] works
    /// without a token.
    pub fn new(server: &str, token: Option<SecretString>) -> Result<Self> {
        // Fails only if the application has installed a provider before; then that one is used.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let server = server_address(server)?;
        let http = reqwest::Client::builder()
            .user_agent(concat!("keypool/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(TRY_TIMEOUT)
            // No call needs redirects, and one could send the bearer token to another path of the host.
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|source| Error::Unreachable { server: server.to_string(), source })?;
        Ok(Self { http, server, token: Arc::new(RwLock::new(token)), timeout: DEFAULT_TIMEOUT, on_retry: None })
    }

    pub(crate) fn has_token(&self) -> bool {
        self.token.read().is_some()
    }

    /// Uses another token from now on.
    pub(crate) fn set_token(&self, token: Option<SecretString>) {
        *self.token.write() = token;
    }

    /// Sets the timeout of a call with all its attempts. A call that waits on the server for a message may take as long
    /// as that wait.
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Sends requests by another HTTP client, for example one with a proxy or with certificates of its own. It should follow
    /// no redirects: they would send the bearer token to another path.
    #[must_use]
    pub fn with_http(self, http: reqwest::Client) -> Self {
        Self { http, ..self }
    }

    /// Has a function called before each repetition, so that people see why they wait.
    #[must_use]
    pub fn with_on_retry(self, on_retry: Option<OnRetry>) -> Self {
        Self { on_retry, ..self }
    }

    /// The server's address, normalised.
    #[must_use]
    pub fn server(&self) -> &str {
        self.server.as_str()
    }

    /// Registers a device. For another device of a known user, this client's token must belong to that user. With an
    /// Idempotency-Key, which is a secret, the call may be repeated.
    pub async fn register(&self, request: &RegisterRequest, key: Option<&str>) -> Result<RegisterResponse> {
        let build = || {
            let call = self.request(Method::POST, "devices")?.json(request);
            Ok(if let Some(key) = key { call.header(IDEMPOTENCY_KEY, key) } else { call })
        };
        if key.is_some() { self.call(build).await } else { self.send(build()?).await }
    }

    /// A user's devices.
    pub async fn devices(&self, user: &UserName) -> Result<DeviceList> {
        self.call(|| self.request(Method::GET, &devices_path(user))).await
    }

    /// A user's devices, removed ones included.
    pub async fn devices_with_removed(&self, user: &UserName) -> Result<DeviceList> {
        let query = DevicesQuery { removed: Some(true) };
        self.call(|| Ok(self.request(Method::GET, &devices_path(user))?.query(&query))).await
    }

    /// Removes one of the user's own devices.
    pub async fn remove_device(&self, device: &DeviceName) -> Result<RemovedDevice> {
        self.call(|| self.request(Method::DELETE, &format!("devices/{device}"))).await
    }

    /// Gives one of the user's own devices a new bearer token. The call is not repeated after a lost answer: the token
    /// that it made would end again.
    pub async fn new_token(&self, device: &DeviceName) -> Result<TokenResponse> {
        self.send(self.request(Method::POST, &format!("devices/{device}/token"))?).await
    }

    /// The devices of up to [`keypool_openapi::MAX_LOOKUP_USERS`] users, with their signature keys.
    pub async fn look_up_devices(&self, request: &LookupRequest) -> Result<LookupResponse> {
        self.call(|| Ok(self.request(Method::POST, "devices/lookup")?.json(request))).await
    }

    /// Uploads KeyPackages, at most [`keypool_openapi::MAX_UPLOAD_BATCH`].
    pub async fn upload_key_packages(&self, request: &UploadRequest) -> Result<UploadResponse> {
        self.call(|| Ok(self.request(Method::POST, "keypackages/upload")?.json(request))).await
    }

    /// Reserves a KeyPackage of each of a user's devices. All attempts carry one `Idempotency-Key`, so that a lost
    /// answer leaves no unknown reservation.
    pub async fn reserve_key_package(&self, request: &ReserveRequest) -> Result<ReserveResponse> {
        let key = Uuid::new_v4().to_string();
        self.call(|| {
            let call = self.request(Method::POST, "keypackages/reserve")?;
            Ok(call.header(IDEMPOTENCY_KEY, &key).json(request))
        })
        .await
    }

    /// Spends a reservation: its KeyPackage is in a Commit.
    pub async fn spend_key_package(&self, request: &SpendRequest) -> Result<SpendResponse> {
        self.call(|| Ok(self.request(Method::POST, "keypackages/spend")?.json(request))).await
    }

    /// Releases a reservation.
    pub async fn release_key_package(&self, request: &ReleaseRequest) -> Result<ReleaseResponse> {
        self.call(|| Ok(self.request(Method::POST, "keypackages/release")?.json(request))).await
    }

    /// Revokes KeyPackages of the device's own pool, at most [`keypool_openapi::MAX_REVOCATIONS`] by their refs.
    pub async fn revoke_key_packages(&self, request: &RevokeRequest) -> Result<RevokeResponse> {
        self.call(|| Ok(self.request(Method::POST, "keypackages/revoke")?.json(request))).await
    }

    /// The status of the device's own pool.
    pub async fn get_key_package_status(&self) -> Result<PoolStatus> {
        self.call(|| self.request(Method::GET, "keypackages/status")).await
    }

    /// The server's inventory of the device's own KeyPackages, sorted by ref. Fails if the server sends too many pages.
    pub async fn get_inventory(&self) -> Result<Vec<InventoryItem>> {
        let mut items = Vec::new();
        let mut query = InventoryQuery { after: None, limit: Some(PAGE) };
        for _ in 0..MAX_PAGES {
            let page: InventoryPage =
                self.call(|| Ok(self.request(Method::GET, "keypackages/inventory")?.query(&query))).await?;
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
        self.call(|| Ok(self.request(Method::GET, "keypackages/audit")?.query(&query))).await
    }

    /// Commits to a group. The server applies the whole request, or nothing.
    pub async fn commit(&self, group_id: &GroupId, request: &CommitRequest) -> Result<CommitResponse> {
        self.call(|| Ok(self.request(Method::POST, &format!("groups/{group_id}/commits"))?.json(request))).await
    }

    /// Sends a message to members of a group. After a lost answer it may be queued twice: receivers detect that through
    /// MLS.
    pub async fn send_message(&self, group_id: &GroupId, request: &MessageRequest) -> Result<MessageResponse> {
        self.call(|| Ok(self.request(Method::POST, &format!("groups/{group_id}/messages"))?.json(request))).await
    }

    /// The oldest messages in the device's own queue, at most `limit`. If the queue is empty, waits up to `wait`
    /// seconds, at most 60. Does not wait if the list of the user's devices has changed since `devices_version`, which
    /// an earlier page contained.
    pub async fn messages(&self, wait: u32, limit: u32, devices_version: Option<u64>) -> Result<MessagesPage> {
        let query = MessagesQuery { wait: Some(wait), limit: Some(limit), devices_version };
        let asked = self.call_that_waits(Duration::from_secs(wait.into()), || {
            Ok(self.request(Method::GET, "messages")?.query(&query))
        });
        let page: MessagesPage = match asked.await {
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
        self.call(|| Ok(self.request(Method::POST, "messages/ack")?.json(request))).await
    }

    /// The version of the server.
    pub async fn server_version(&self) -> Result<String> {
        let document: Document = self.call(|| self.request(Method::GET, "openapi.json")).await?;
        Ok(document.info.version)
    }

    fn request(&self, method: Method, path: &str) -> Result<RequestBuilder> {
        let url = self.server.join(path).map_err(|_| Error::ServerAddress(self.server.to_string()))?;
        let request = self.http.request(method, url);
        Ok(match &*self.token.read() {
            Some(token) => request.bearer_auth(token.expose_secret()),
            None => request,
        })
    }

    /// Repeats a call until it is answered or the timeout ends.
    async fn call<T: DeserializeOwned>(&self, build: impl Fn() -> Result<RequestBuilder>) -> Result<T> {
        self.call_that_waits(Duration::ZERO, build).await
    }

    /// Like [`Self::call`], for a call that the server may answer after `wait`.
    async fn call_that_waits<T: DeserializeOwned>(
        &self,
        wait: Duration,
        build: impl Fn() -> Result<RequestBuilder>,
    ) -> Result<T> {
        let started = Instant::now();
        let deadline = self.timeout.max(wait + TRY_TIMEOUT.min(self.timeout));
        let left = || deadline.saturating_sub(started.elapsed());
        let may_pass = |error: &Error| match error {
            Error::Unreachable { source, .. } if source.is_connect() => started.elapsed() < REFUSED_TIMEOUT,
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
        (async || self.send(build()?.timeout((wait + TRY_TIMEOUT).min(left()))).await)
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

    async fn send<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T> {
        let unreachable = |error| unreachable(self.server.to_string(), error);
        let mut response: Response = request.send().await.map_err(unreachable)?;
        let status = response.status().as_u16();
        let retry_after = retry_after(&response);
        let is_success = response.status().is_success();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
            if body.len() + chunk.len() > MAX_ANSWER {
                return Err(self.misunderstood(status, format!("more than {MAX_ANSWER} bytes"), retry_after));
            }
            body.extend_from_slice(&chunk);
        }
        if is_success {
            serde_json::from_slice(&body).map_err(|error| self.misunderstood(status, error.to_string(), None))
        } else {
            Err(refusal(status, &body, retry_after).unwrap_or_else(|| {
                let beginning = String::from_utf8_lossy(&body).chars().take(200).collect();
                self.misunderstood(status, beginning, retry_after)
            }))
        }
    }

    fn misunderstood(&self, status: u16, found: String, retry_after: Option<Duration>) -> Error {
        Error::Answer { server: self.server.to_string(), status, found, retry_after }
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

/// Reads the address of a server, and ends it with a slash so that paths can be joined to it.
pub(crate) fn server_address(text: &str) -> Result<Url> {
    let invalid = || Error::ServerAddress(text.to_owned());
    let mut url = Url::parse(text).map_err(|_| invalid())?;
    if !matches!(url.scheme(), "http" | "https") || url.query().is_some() || url.fragment().is_some() {
        return Err(invalid());
    }
    if !url.path().ends_with('/') {
        let path = format!("{}/", url.path());
        url.set_path(&path);
    }
    Ok(url)
}

/// The path of a user's devices. The name may have any character.
fn devices_path(user: &UserName) -> String {
    format!("users/{}/devices", utf8_percent_encode(user.as_str(), UNRESERVED))
}

/// Whether traffic to this address is unencrypted and leaves this machine, so that others could read the bearer token.
#[must_use]
pub fn is_in_the_clear(server: &str) -> bool {
    Url::parse(server).is_ok_and(|url| {
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
        let is_loopback = host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        let is_here = is_loopback || host == "localhost" || host.ends_with(".localhost");
        url.scheme() == "http" && !is_here
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_keep_their_path_and_must_be_http() {
        assert_eq!(server_address("http://localhost:8080").unwrap().as_str(), "http://localhost:8080/");
        let below = server_address("https://example.org/keypool").unwrap();
        assert_eq!(
            below.join("keypackages/status").unwrap().as_str(),
            "https://example.org/keypool/keypackages/status"
        );
        for wrong in ["localhost:8080", "ftp://example.org", "example.org", "http://a/?b"] {
            assert!(server_address(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_http_to_another_machine_is_in_the_clear() {
        for clear in
            ["http://example.org", "http://10.0.0.1:8080/", "http://localhost.example.org", "http://[fe80::1]/"]
        {
            assert!(is_in_the_clear(clear), "{clear}");
        }
        for safe in ["https://example.org", "http://localhost:8080", "http://127.0.0.1", "http://[::1]:8080/"] {
            assert!(!is_in_the_clear(safe), "{safe}");
        }
    }

    #[test]
    fn the_token_never_shows_in_debug() {
        let client = ApiClient::new("http://localhost:1", Some("keypool_hush".into())).unwrap();
        assert!(!format!("{client:?}").contains("hush"));
    }
}
