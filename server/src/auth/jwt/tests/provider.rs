//! An identity provider: real keys, and a real HTTP server that publishes them.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use actix_web::{App, HttpResponse, HttpServer, dev::ServerHandle, http::StatusCode, web};
use base64::{Engine, engine::general_purpose::STANDARD};
use jsonwebtoken::{Algorithm, EncodingKey, Header, jwk::Jwk};
use rand::TryRng;
use serde_json::{Value, json};
use tokio::{
    net::TcpSocket,
    sync::{Notify, Semaphore},
};

const RSA_KEY: &str = include_str!("rsa_key.pem");

/// A PKCS#8 key without its public half is a fixed beginning and the secret: RFC 8410 for Ed25519, RFC 5915 for P-*.
const ED25519: (&str, usize) = ("302e020100300506032b657004220420", 32);
const P256: (&str, usize) = ("3041020100301306072a8648ce3d020106082a8648ce3d030107042730250201010420", 32);
const P384: (&str, usize) = ("304e020100301006072a8648ce3d020106052b81040022043730350201010430", 48);

/// A key that signs.
#[derive(Clone)]
pub struct Signer {
    kid: Option<String>,
    algorithm: Algorithm,
    key: EncodingKey,
}

impl Signer {
    /// A new key; the RSA key is always the same, since to make one takes long.
    pub fn new(kid: &str, algorithm: Algorithm) -> Self {
        let key = match algorithm {
            Algorithm::EdDSA => EncodingKey::from_ed_der(&pkcs8(ED25519)),
            Algorithm::ES256 => EncodingKey::from_ec_der(&pkcs8(P256)),
            Algorithm::ES384 => EncodingKey::from_ec_der(&pkcs8(P384)),
            _ => {
                let base64: String = RSA_KEY.lines().skip(2).take_while(|line| !line.starts_with('-')).collect();
                EncodingKey::from_rsa_der(&STANDARD.decode(base64).unwrap())
            }
        };
        Self { kid: Some(kid.to_owned()), algorithm, key }
    }

    /// The same key, under another name or none in the tokens.
    pub fn called(&self, kid: Option<&str>) -> Self {
        Self { kid: kid.map(ToOwned::to_owned), ..self.clone() }
    }

    /// The public key, as it is published. As many providers do, it says nothing of the algorithm.
    pub fn jwk(&self) -> Value {
        let mut jwk = serde_json::to_value(Jwk::from_encoding_key(&self.key, self.algorithm).unwrap()).unwrap();
        jwk["kid"] = json!(self.kid);
        jwk.as_object_mut().unwrap().remove("alg").unwrap();
        jwk
    }

    /// The public key, with these members over its own.
    pub fn jwk_with(&self, members: &Value) -> Value {
        let mut jwk = self.jwk();
        jwk.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
        jwk
    }

    /// A token with these claims.
    pub fn sign(&self, claims: &Value) -> String {
        self.sign_with(&self.header(), claims)
    }

    /// A token with that header and these claims.
    pub fn sign_with(&self, header: &Header, claims: &Value) -> String {
        jsonwebtoken::encode(header, claims, &self.key).unwrap()
    }

    /// The header of its tokens.
    pub fn header(&self) -> Header {
        Header { kid: self.kid.clone(), ..Header::new(self.algorithm) }
    }
}

fn pkcs8((beginning, secret): (&str, usize)) -> Vec<u8> {
    let mut der = hex::decode(beginning).unwrap();
    let start = der.len();
    der.resize(start + secret, 0);
    rand::rngs::SysRng.try_fill_bytes(&mut der[start..]).unwrap();
    der
}

/// A JWK Set.
pub fn jwks(keys: impl IntoIterator<Item = Value>) -> Value {
    json!({ "keys": keys.into_iter().collect::<Vec<_>>() })
}

struct Answer {
    now: Mutex<(StatusCode, String)>,
    fetches: AtomicUsize,
    arrived: Notify,
    /// A permit for each fetch that may be answered.
    gate: Semaphore,
}

/// The provider's HTTP server.
pub struct Provider {
    pub url: String,
    answer: Arc<Answer>,
    server: ServerHandle,
}

/// An address that nobody listens on, and nobody else can take.
pub struct Reserved(TcpSocket);

impl Reserved {
    pub fn new() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        Self(socket)
    }

    pub fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }

    /// The URL of the keys there.
    pub fn url(&self) -> String {
        format!("http://{}/keys", self.address())
    }

    /// Serves there.
    pub fn start(self, keys: &Value) -> Provider {
        let url = self.url();
        let answer = Arc::new(Answer {
            now: Mutex::new((StatusCode::OK, keys.to_string())),
            fetches: AtomicUsize::new(0),
            arrived: Notify::new(),
            gate: Semaphore::new(1_000),
        });
        let data = web::Data::from(Arc::clone(&answer));
        let server = HttpServer::new(move || {
            let redirect = web::redirect("/moved", "/keys").see_other();
            App::new().app_data(data.clone()).service(redirect).route("/keys", web::get().to(serve))
        })
        .workers(1)
        .disable_signals()
        .listen(self.0.listen(64).unwrap().into_std().unwrap())
        .unwrap()
        .run();
        let handle = server.handle();
        tokio::spawn(server);
        Provider { url, answer, server: handle }
    }
}

async fn serve(answer: web::Data<Answer>) -> HttpResponse {
    answer.fetches.fetch_add(1, Ordering::SeqCst);
    answer.arrived.notify_one();
    answer.gate.acquire().await.unwrap().forget();
    let (status, body) = answer.now.lock().unwrap().clone();
    HttpResponse::build(status).body(body)
}

impl Provider {
    /// A provider of these keys.
    pub fn start(keys: &Value) -> Self {
        Reserved::new().start(keys)
    }

    /// From now on it answers this.
    pub fn answer(&self, status: StatusCode, body: &impl ToString) {
        *self.answer.now.lock().unwrap() = (status, body.to_string());
    }

    /// How often it was asked.
    pub fn fetches(&self) -> usize {
        self.answer.fetches.load(Ordering::SeqCst)
    }

    /// Lets fetches wait until [`Provider::release`].
    pub fn hold(&self) {
        self.answer.gate.forget_permits(1_000);
    }

    /// Answers the fetches that wait.
    pub fn release(&self) {
        self.answer.gate.add_permits(1_000);
    }

    /// Until somebody has asked.
    pub async fn asked(&self) {
        self.answer.arrived.notified().await;
    }

    /// Goes away.
    pub async fn stop(self) {
        self.server.stop(false).await;
    }
}
