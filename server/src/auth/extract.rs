//! Extractors of handlers: the caller, then the body, the parameters and the headers.

use std::{future::Future, pin::Pin, rc::Rc, time::Duration};

use actix_web::{
    FromRequest, HttpMessage, HttpRequest,
    dev::Payload,
    http::header::{self, HeaderName},
    web,
};
use keypool_openapi::{
    AckRequest, CheckpointRequest, CommitRequest, GroupInfoRequest, LookupRequest, MAX_KEY_PACKAGE_SIZE,
    MAX_LOOKUP_USERS, MAX_MESSAGE_SIZE, MAX_UPLOAD_BATCH, MAX_USER_NAME_SIZE, MessageRequest, Object, ProblemType,
    ProofsRequest, RegisterRequest, ReleaseRequest, ReserveRequest, RevokeRequest, SpendRequest, UploadRequest,
};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, Error as _},
};

use super::Authenticator;
use crate::{
    body_memory::BodyMemory,
    caller::{Bearer, Caller, Reader, RequestKey},
    config::LogAccess,
    connections::Connection,
    limits::{Origin, Strangers},
    problem::{Failure, unknown_token},
};

/// The limit of most bodies, in bytes. Usual ones are much smaller.
const SMALL_BODY: usize = 128 * 1024;

/// Bodies up to this size reserve no memory: the number of connections bounds them.
const FREE_BODY: usize = 8 * 1024;

/// How long a body may take to arrive. A slower one would hold a connection, and delay a stopping server.
const BODY_TIMEOUT: Duration = Duration::from_secs(20);

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The header that makes a request repeatable.
pub(crate) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const IDEMPOTENCY_KEY_LIMIT: usize = 255;

/// A request's body, with its largest size in bytes. A larger one is refused before it is read.
pub(crate) trait Body: DeserializeOwned + 'static {
    const LIMIT: usize = SMALL_BODY;
}

impl Body for RegisterRequest {
    /// Two names. A small limit, since strangers may send them.
    const LIMIT: usize = 8 * 1024;
}
impl Body for LookupRequest {
    /// A thousand of the longest names. JSON may escape a letter of two bytes with six.
    const LIMIT: usize = MAX_LOOKUP_USERS * (3 * MAX_USER_NAME_SIZE + 8);
}
impl Body for ReserveRequest {}
impl Body for SpendRequest {}
impl Body for ReleaseRequest {}
impl Body for RevokeRequest {}
impl Body for AckRequest {}
impl Body for ProofsRequest {}
impl Body for CheckpointRequest {}
impl Body for CommitRequest {
    /// A Commit, a Welcome and a GroupInfo in base64, and two thousand names.
    const LIMIT: usize = 3 * MAX_MESSAGE_SIZE * 4 / 3 + 1024 * 1024;
}
impl Body for GroupInfoRequest {
    const LIMIT: usize = MAX_MESSAGE_SIZE * 4 / 3 + 512 * 1024;
}
impl Body for MessageRequest {
    const LIMIT: usize = MAX_MESSAGE_SIZE * 4 / 3 + 512 * 1024;
}
impl Body for UploadRequest {
    /// A full upload of the largest KeyPackages in base64, and the JSON around them.
    const LIMIT: usize = MAX_UPLOAD_BATCH * MAX_KEY_PACKAGE_SIZE * 4 / 3 + 64 * 1024;
}

/// The operator, identified by the admin token.
pub(crate) struct Admin;

/// A reader of the transparency log, as far as the operator lets it be read.
pub(crate) struct LogReader;

/// The bearer of a request that strangers may make, too.
pub(crate) struct MaybeBearer(pub Option<Bearer>);

/// A device's request: the caller and the body. The body is read only after the caller is authenticated.
pub(crate) struct Signed<T>(pub Caller, pub T);

/// The body of a request from any caller.
pub(crate) struct Content<T>(pub T);

/// The query parameters.
pub(crate) struct Params<T>(pub T);

/// The request's `Idempotency-Key`.
pub(crate) struct IdempotencyHeader(pub Option<RequestKey>);

type Extracted<T> = Pin<Box<dyn Future<Output = Result<T, Failure>>>>;

impl FromRequest for Caller {
    type Error = Failure;
    type Future = Extracted<Self>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let reader = Reader::from_request(request, payload);
        Box::pin(async move {
            match reader.await? {
                Reader::Device(caller) => Ok(caller),
                Reader::Admin => Err(Failure::new(
                    ProblemType::Forbidden,
                    "This call is about a device's own pool. Use a device's token in place of the admin token.",
                )),
            }
        })
    }
}

impl FromRequest for Admin {
    type Error = Failure;
    type Future = Extracted<Self>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let reader = Reader::from_request(request, payload);
        Box::pin(async move {
            match reader.await? {
                Reader::Admin => Ok(Self),
                Reader::Device(_) => Err(Failure::new(
                    ProblemType::Forbidden,
                    "Only the operator may make this call. Use the server's admin token.",
                )),
            }
        })
    }
}

impl FromRequest for Reader {
    type Error = Failure;
    type Future = Extracted<Self>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let request = request.clone();
        Box::pin(async move {
            match identify(&request).await? {
                Some(Bearer::Device(caller)) => Ok(Self::Device(caller)),
                Some(Bearer::Admin) => Ok(Self::Admin),
                Some(Bearer::Enrolment(_) | Bearer::Link(_) | Bearer::User(_) | Bearer::Stranger) => {
                    Err(unknown_token())
                }
                None => Err(no_token()),
            }
        })
    }
}

impl FromRequest for LogReader {
    type Error = Failure;
    type Future = Extracted<Self>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let access = app_data::<LogAccess>(request).map(|access| ***access);
        let reader = Reader::from_request(request, payload);
        Box::pin(async move {
            match access? {
                LogAccess::Public => Ok(Self),
                LogAccess::Registered => reader.await.map(|_| Self),
                LogAccess::Off => Err(Failure::new(
                    ProblemType::NotFound,
                    "The operator lets nobody read the transparency log. POST /log/proofs still proves your own hand-outs.",
                )),
            }
        })
    }
}

impl FromRequest for MaybeBearer {
    type Error = Failure;
    type Future = Extracted<Self>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let request = request.clone();
        Box::pin(async move {
            let bearer = identify(&request).await?;
            if matches!(bearer, Some(Bearer::Device(_) | Bearer::Admin)) {
                return Ok(Self(bearer));
            }
            let authenticator = app_data::<Authenticator>(&request)?;
            let origin = origin(authenticator.strangers(), &request);
            authenticator.strangers().admit(origin)?;
            authenticator.strangers().count(origin);
            let user = match (&bearer, authorization(&request)?) {
                (Some(Bearer::Stranger), Some(header)) => authenticator.user(header).await?,
                _ => None,
            };
            Ok(Self(user.map(Bearer::User).or(bearer)))
        })
    }
}

impl<T: Body> FromRequest for Signed<T> {
    type Error = Failure;
    type Future = Extracted<Self>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let (request, mut payload) = (request.clone(), payload.take());
        Box::pin(async move {
            let caller = Caller::from_request(&request, &mut Payload::None).await?;
            Ok(Self(caller, read(&request, &mut payload).await?))
        })
    }
}

impl<T: Body> FromRequest for Content<T> {
    type Error = Failure;
    type Future = Extracted<Self>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let (request, mut payload) = (request.clone(), payload.take());
        Box::pin(async move { read(&request, &mut payload).await.map(Self) })
    }
}

impl<T: DeserializeOwned> FromRequest for Params<T> {
    type Error = Failure;
    type Future = std::future::Ready<Result<Self, Failure>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let params = web::Query::<T>::from_query(request.query_string());
        std::future::ready(params.map(|params| Self(params.into_inner())).map_err(|error| {
            Failure::new(ProblemType::MalformedRequest, format!("The query parameters cannot be parsed: {error}."))
        }))
    }
}

impl FromRequest for IdempotencyHeader {
    type Error = Failure;
    type Future = std::future::Ready<Result<Self, Failure>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let Some(value) = request.headers().get(&IDEMPOTENCY_KEY) else { return std::future::ready(Ok(Self(None))) };
        let key = value.as_bytes();
        let visible = key.iter().all(u8::is_ascii_graphic);
        std::future::ready(if visible && (1..=IDEMPOTENCY_KEY_LIMIT).contains(&key.len()) {
            Ok(Self(Some(RequestKey::new(key))))
        } else {
            Err(Failure::new(
                ProblemType::MalformedRequest,
                "The Idempotency-Key is not 1 to 255 visible ASCII characters. Send a random one, such as a UUID.",
            ))
        })
    }
}

/// A body that names the field of its error.
struct Named<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Named<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match serde_path_to_error::deserialize(deserializer) {
            Ok(Object(body)) => Ok(Self(body)),
            // The error of the whole body has no field.
            Err(error) if error.path().iter().next().is_none() => Err(error.into_inner()),
            Err(error) => Err(D::Error::custom(format_args!("`{}`: {}", error.path(), error.inner()))),
        }
    }
}

/// Refuses a compressed body. The server reads none, so that a small body cannot become a large one.
fn check_encoding(request: &HttpRequest) -> Result<(), Failure> {
    let Some(encoding) = request.headers().get(header::CONTENT_ENCODING) else { return Ok(()) };
    if encoding.as_bytes().eq_ignore_ascii_case(b"identity") {
        return Ok(());
    }
    Err(Failure::new(
        ProblemType::UnsupportedMediaType,
        format!(
            "The body has the Content-Encoding {}, which the server does not read. Send plain JSON without this header.",
            encoding.to_str().unwrap_or("that is no text")
        ),
    ))
}

/// Reserves memory for a body that is not small, until the request ends. A body without an announced length counts with
/// its limit.
fn take_memory<T: Body>(request: &HttpRequest) -> Result<(), Failure> {
    let announced = request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    let bytes = announced.unwrap_or(T::LIMIT);
    // A body above its limit is not read, and needs no memory.
    if (FREE_BODY + 1..=T::LIMIT).contains(&bytes) {
        let permit = app_data::<BodyMemory>(request)?.take(bytes)?;
        request.extensions_mut().insert(permit);
    }
    Ok(())
}

/// Reads a body as JSON and ignores its content type: `curl -d` labels every body as a form.
async fn read<T: Body>(request: &HttpRequest, payload: &mut Payload) -> Result<T, Failure> {
    use actix_web::error::JsonPayloadError as E;
    check_encoding(request)?;
    take_memory::<T>(request)?;
    let connection = request.conn_data::<Rc<Connection>>();
    connection.inspect(|connection| connection.reads_body());
    let body = web::JsonBody::<Named<T>>::new(request, payload, Some(&|_| true), false).limit(T::LIMIT);
    let body = tokio::time::timeout(BODY_TIMEOUT, body).await.map_err(|_| {
        Failure::new(
            ProblemType::MalformedRequest,
            format!("The body did not arrive within {} s. Send it again, faster or in parts.", BODY_TIMEOUT.as_secs()),
        )
    })?;
    if body.is_ok() {
        connection.inspect(|connection| connection.has_body());
    }
    body.map(|Named(body)| body).map_err(|error| match error {
        E::Overflow { .. } | E::OverflowKnownLength { .. } => Failure::new(
            ProblemType::PayloadTooLarge,
            format!("The body is larger than the {} bytes that this call allows. Send less at a time.", T::LIMIT),
        ),
        E::Deserialize(error) => Failure::new(
            ProblemType::MalformedRequest,
            format!("The body does not match the schema of this call: {error}."),
        ),
        _ => Failure::new(ProblemType::MalformedRequest, "The body could not be read as JSON. Send it again."),
    })
}

fn no_token() -> Failure {
    Failure::new(
        ProblemType::Unauthenticated,
        "The request has no bearer token. POST /devices registers a device and answers its token; send it as \
         `Authorization: Bearer TOKEN`.",
    )
}

fn app_data<T: 'static>(request: &HttpRequest) -> Result<&web::Data<T>, Failure> {
    let data = request.app_data::<web::Data<T>>();
    data.ok_or_else(|| Failure::new(ProblemType::Internal, "The server was built without one of its parts."))
}

fn authorization(request: &HttpRequest) -> Result<Option<&str>, Failure> {
    let header = request.headers().get(header::AUTHORIZATION);
    header.map(|value| value.to_str().map_err(|_| unknown_token())).transpose()
}

/// The address that a request comes from.
fn origin(strangers: &Strangers, request: &HttpRequest) -> Origin {
    // A value that is not text counts as one that is not an address: the addresses before it are not believed.
    let forwarded = request.headers().get_all(FORWARDED_FOR).map(|value| value.to_str().unwrap_or_default());
    strangers.origin(request.peer_addr().map(|peer| peer.ip()), forwarded)
}

/// The bearer of the request's token; `None` without a token. Counts a device's request in the limits.
async fn identify(request: &HttpRequest) -> Result<Option<Bearer>, Failure> {
    let Some(header) = authorization(request)? else { return Ok(None) };
    let authenticator = app_data::<Authenticator>(request)?;
    let bearer = authenticator.bearer(header, origin(authenticator.strangers(), request)).await?;
    if matches!(bearer, Bearer::Device(_)) {
        request.conn_data::<Rc<Connection>>().inspect(|connection| connection.is_a_devices());
    }
    Ok(Some(bearer))
}

#[cfg(test)]
mod tests {
    use actix_web::{error::PayloadError, test::TestRequest, web::Bytes};
    use futures_util::stream;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_come_is_not_waited_for() {
        let request = TestRequest::post().to_http_request();
        let never = stream::pending::<Result<Bytes, PayloadError>>();
        let mut payload: Payload = Payload::Stream { payload: Box::pin(never) };
        let failure = read::<RegisterRequest>(&request, &mut payload).await.unwrap_err();
        assert_eq!(failure.kind, ProblemType::MalformedRequest);
        assert!(failure.detail.contains("within 20 s"), "{}", failure.detail);
    }
}
