use std::sync::{LazyLock, Once};

use base64::{Engine, engine::general_purpose::STANDARD};
use keypool_openapi::ProblemType;
use reqwest::{
    Client, Method,
    header::{self, HeaderMap, HeaderName},
    redirect::Policy,
};
use serde_json::{Value, json};

/// A caller over HTTP: a server's address and, once registered, a token.
#[derive(Clone, Debug)]
pub struct Http {
    client: Client,
    pub base: String,
    pub token: Option<String>,
    headers: HeaderMap,
}

/// A server's answer.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub text: String,
    pub json: Value,
}

impl Answer {
    /// The body of an answer that has to be a success.
    #[track_caller]
    pub fn ok(self) -> Value {
        assert!((200..300).contains(&self.status), "{} {}", self.status, self.text);
        self.json
    }

    /// A header's value, where the answer has it.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// Asserts that this is the problem, with its status, as `application/problem+json` with a detail, and with the
    /// headers that such a problem needs and no other has.
    #[track_caller]
    pub fn is_problem(&self, status: u16, kind: ProblemType) {
        use ProblemType as P;
        assert_eq!((self.status, self.json["type"].as_str()), (status, Some(kind.into())), "{}", self.text);
        assert_eq!(self.header("content-type"), Some("application/problem+json"));
        let seconds = self.header("retry-after").map(|seconds| seconds.parse::<u64>().unwrap());
        assert_eq!(seconds.is_some_and(|n| n > 0), matches!(kind, P::TooManyRequests | P::Unavailable), "{seconds:?}");
        assert_eq!(self.header("allow").is_some(), kind == P::MethodNotAllowed, "{:?}", self.headers);
        let challenge = (kind == P::Unauthenticated).then_some("Bearer");
        assert_eq!(self.header("www-authenticate"), challenge);
        assert_eq!(self.json["status"], status);
        assert!(self.json["title"].as_str().is_some_and(|title| !title.is_empty()), "{}", self.text);
        assert!(self.json["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{}", self.text);
    }
}

/// The base of every client in the tests. It trusts no certificate: reading the machine's takes longer than a test's requests.
pub fn builder() -> reqwest::ClientBuilder {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| {
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
    Client::builder().no_proxy().redirect(Policy::none()).tls_certs_only([])
}

/// A client that keeps its connections, for tests that make thousands of requests.
pub fn hot_client() -> Client {
    builder().build().unwrap()
}

/// A group id, as it travels.
pub fn group(name: &str) -> String {
    STANDARD.encode(name)
}

impl Http {
    /// A connection for each request, so that no idle one keeps a server from stopping.
    pub fn new(base: &str) -> Self {
        static CLIENT: LazyLock<Client> = LazyLock::new(|| builder().pool_max_idle_per_host(0).build().unwrap());
        Self::over(CLIENT.clone(), base)
    }

    pub fn over(client: Client, base: &str) -> Self {
        Self { client, base: base.to_owned(), token: None, headers: HeaderMap::new() }
    }

    /// The same caller at another server.
    pub fn at(&self, base: &str) -> Self {
        Self { base: base.to_owned(), ..self.clone() }
    }

    pub fn with_token(&self, token: &str) -> Self {
        Self { token: Some(token.to_owned()), ..self.clone() }
    }

    /// The same caller, whose requests carry this `Idempotency-Key`.
    pub fn with_key(&self, key: &str) -> Self {
        self.with_header("idempotency-key", key)
    }

    /// The same caller, whose requests carry this header.
    pub fn with_header(&self, name: &'static str, value: &str) -> Self {
        let mut caller = self.clone();
        caller.headers.insert(HeaderName::from_static(name), value.parse().unwrap());
        caller
    }

    /// Sends a request; an error is one of the connection.
    pub async fn try_send(&self, method: Method, path: &str, body: Option<String>) -> reqwest::Result<Answer> {
        let mut request = self.client.request(method, format!("{}{path}", self.base));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        request = request.headers(self.headers.clone());
        if let Some(body) = body {
            request = request.header(header::CONTENT_TYPE, "application/json").body(body);
        }
        let response = request.send().await?;
        let status = response.status().as_u16();
        let headers = response.headers().clone();
        let text = response.text().await?;
        let json = serde_json::from_str(&text).unwrap_or(Value::Null);
        Ok(Answer { status, headers, text, json })
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.try_send(Method::GET, path, None).await.unwrap()
    }

    /// The bytes of an answer that has to be a success.
    pub async fn bytes(&self, path: &str) -> Vec<u8> {
        let response = self.client.get(format!("{}{path}", self.base)).send().await.unwrap();
        assert_eq!(response.status().as_u16(), 200, "{path}");
        response.bytes().await.unwrap().to_vec()
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.try_send(Method::POST, path, Some(body.to_string())).await.unwrap()
    }

    pub async fn put(&self, path: &str, body: &Value) -> Answer {
        self.try_send(Method::PUT, path, Some(body.to_string())).await.unwrap()
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.try_send(Method::DELETE, path, None).await.unwrap()
    }

    pub async fn try_post(&self, path: &str, body: &Value) -> reqwest::Result<Answer> {
        self.try_send(Method::POST, path, Some(body.to_string())).await
    }

    pub async fn is_ready(&self) -> bool {
        self.try_send(Method::GET, "/readyz", None).await.is_ok_and(|answer| answer.status == 200)
    }

    pub async fn register(&self, user: &str, device: &str) -> Answer {
        self.post("/devices", &json!({"user": user, "device": device})).await
    }

    /// Registers a device, and answers the caller that it is.
    pub async fn registered(&self, user: &str, device: &str) -> Self {
        let token = self.register(user, device).await.ok()["token"].as_str().unwrap().to_owned();
        self.with_token(&token)
    }

    pub async fn upload(&self, packages: &[impl AsRef<[u8]>]) -> Answer {
        let packages: Vec<_> = packages.iter().map(|bytes| STANDARD.encode(bytes)).collect();
        self.post("/keypackages/upload", &json!({"keypackages": packages})).await
    }

    /// Uploads KeyPackages that the server has to accept.
    pub async fn uploaded(&self, packages: &[impl AsRef<[u8]>]) {
        for batch in packages.chunks(100) {
            let answer = self.upload(batch).await.ok();
            assert_eq!(answer["accepted"].as_array().unwrap().len(), batch.len(), "{}", answer["rejected"]);
        }
    }

    pub async fn reserve(&self, user: &str) -> Answer {
        self.post("/keypackages/reserve", &json!({"target_user": user})).await
    }

    /// Reserves one package of a user with one device, and answers the reservation.
    pub async fn reserved(&self, user: &str) -> Value {
        self.reserve(user).await.ok()["reservations"][0].clone()
    }

    pub async fn spend(&self, reservation: &Value, group_name: &str) -> Answer {
        let body = json!({"reservation_id": reservation["reservation_id"], "group_id": group(group_name)});
        self.post("/keypackages/spend", &body).await
    }

    pub async fn release(&self, reservation: &Value) -> Answer {
        self.post("/keypackages/release", &json!({"reservation_id": reservation["reservation_id"]})).await
    }

    pub async fn status(&self) -> Value {
        self.get("/keypackages/status").await.ok()
    }
}
