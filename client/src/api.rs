use std::{fmt, time::Duration};

use keypool_openapi::{
    DeviceList, PoolStatus, Problem, RegisterRequest, RegisterResponse, ReleaseRequest, ReleaseResponse,
    ReserveRequest, ReserveResponse, SpendRequest, SpendResponse, UploadRequest, UploadResponse, UserName,
};
use reqwest::{Method, RequestBuilder, Response, Url};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, de::DeserializeOwned};

use crate::error::{Error, Result};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const TIMEOUT: Duration = Duration::from_secs(30);

/// Keypool's HTTP calls, typed. An answer that is an error becomes [`Error::Refused`].
#[derive(Clone)]
pub struct ApiClient {
    http: reqwest::Client,
    server: Url,
    token: Option<SecretString>,
}

impl fmt::Debug for ApiClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiClient").field("server", &self.server.as_str()).finish_non_exhaustive()
    }
}

impl ApiClient {
    /// A client of the server at `server`, which acts as the device whose `token` it holds. Only
    /// [`ApiClient::register`] can do without.
    pub fn new(server: &str, token: Option<SecretString>) -> Result<Self> {
        // Fails only if the application has chosen a provider before, and then that one serves.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let server = server_address(server)?;
        let http = reqwest::Client::builder()
            .user_agent(concat!("keypool/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(TIMEOUT)
            // A redirect could carry the bearer token to another path of the same host, and no call needs one.
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|source| Error::Unreachable { server: server.to_string(), source })?;
        Ok(Self { http, server, token })
    }

    /// The server's address, as the client uses it.
    #[must_use]
    pub fn server(&self) -> &str {
        self.server.as_str()
    }

    /// Registers a device. For a further device of a known user, this client's token must be one of that user.
    pub async fn register(&self, request: &RegisterRequest) -> Result<RegisterResponse> {
        self.call(self.request(Method::POST, "devices")?.json(request)).await
    }

    /// A user's devices.
    pub async fn devices(&self, user: &UserName) -> Result<DeviceList> {
        self.call(self.request(Method::GET, &format!("users/{user}/devices"))?).await
    }

    /// Uploads KeyPackages, at most [`keypool_openapi::MAX_UPLOAD_BATCH`].
    pub async fn upload(&self, request: &UploadRequest) -> Result<UploadResponse> {
        self.call(self.request(Method::POST, "keypackages/upload")?.json(request)).await
    }

    /// Reserves a KeyPackage of each of a user's devices.
    pub async fn reserve(&self, request: &ReserveRequest) -> Result<ReserveResponse> {
        self.call(self.request(Method::POST, "keypackages/reserve")?.json(request)).await
    }

    /// Says that a reserved KeyPackage is in a Commit. May be repeated.
    pub async fn spend(&self, request: &SpendRequest) -> Result<SpendResponse> {
        self.call(self.request(Method::POST, "keypackages/spend")?.json(request)).await
    }

    /// Gives a reserved KeyPackage back.
    pub async fn release(&self, request: &ReleaseRequest) -> Result<ReleaseResponse> {
        self.call(self.request(Method::POST, "keypackages/release")?.json(request)).await
    }

    /// The device's own pool.
    pub async fn status(&self) -> Result<PoolStatus> {
        self.call(self.request(Method::GET, "keypackages/status")?).await
    }

    fn request(&self, method: Method, path: &str) -> Result<RequestBuilder> {
        let url = self.server.join(path).map_err(|_| Error::ServerAddress(self.server.to_string()))?;
        let request = self.http.request(method, url);
        Ok(match &self.token {
            Some(token) => request.bearer_auth(token.expose_secret()),
            None => request,
        })
    }

    async fn call<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T> {
        let unreachable = |source: reqwest::Error| Error::Unreachable {
            server: self.server.to_string(),
            source: source.without_url(),
        };
        let response: Response = request.send().await.map_err(unreachable)?;
        let status = response.status();
        let body = response.bytes().await.map_err(unreachable)?;
        if status.is_success() {
            serde_json::from_slice(&body).map_err(|error| self.misunderstood(status.as_u16(), error.to_string()))
        } else {
            Err(refusal(status.as_u16(), &body).unwrap_or_else(|| {
                self.misunderstood(status.as_u16(), String::from_utf8_lossy(&body).chars().take(200).collect())
            }))
        }
    }

    fn misunderstood(&self, status: u16, found: String) -> Error {
        Error::Answer { server: self.server.to_string(), status, found }
    }
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

/// A problem whose `type` may be newer than this program.
#[derive(Deserialize)]
struct AnyProblem {
    #[serde(rename = "type")]
    code: String,
    #[serde(default)]
    title: String,
    #[serde(default)]
    detail: String,
}

fn refusal(status: u16, body: &[u8]) -> Option<Error> {
    let (kind, problem) = match serde_json::from_slice::<Problem>(body) {
        Ok(Problem { kind, title, detail, .. }) => (Some(kind), AnyProblem { code: kind.to_string(), title, detail }),
        Err(_) => (None, serde_json::from_slice::<AnyProblem>(body).ok()?),
    };
    let AnyProblem { code, title, detail } = problem;
    let title = if title.is_empty() { code.clone() } else { title };
    let detail = if detail.is_empty() { format!("the server answered {status} and no more") } else { detail };
    Some(Error::Refused { kind, code, status, title, detail })
}

#[cfg(test)]
mod tests {
    use keypool_openapi::ProblemType;

    use super::*;

    #[test]
    fn a_known_problem_keeps_its_type() {
        let body = br#"{"type":"pool-exhausted","title":"No KeyPackage is left","status":404,"detail":"ask bob"}"#;
        let error = refusal(404, body).unwrap();
        assert_eq!(error.problem(), Some(ProblemType::PoolExhausted));
        assert_eq!(error.to_string(), "No KeyPackage is left: ask bob");
    }

    #[test]
    fn an_unknown_problem_is_still_told() {
        let body = br#"{"type":"moon-phase","title":"Wrong moon","status":409,"detail":"wait a week"}"#;
        let error = refusal(409, body).unwrap();
        assert_eq!(error.problem(), None);
        assert_eq!(error.to_string(), "Wrong moon: wait a week");
        assert!(matches!(error, Error::Refused { status: 409, code, .. } if code == "moon-phase"));
    }

    #[test]
    fn a_page_of_something_else_is_no_problem() {
        assert!(refusal(502, b"<html>Bad gateway</html>").is_none());
    }

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
    fn the_token_never_shows_in_debug() {
        let client = ApiClient::new("http://localhost:1", Some("keypool_hush".into())).unwrap();
        assert!(!format!("{client:?}").contains("hush"));
    }
}
