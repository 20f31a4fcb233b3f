//! What handlers take from a request: who makes it, then what it says.

use std::{future::Future, pin::Pin, rc::Rc, time::Duration};

use actix_web::{FromRequest, HttpMessage, HttpRequest, dev::Payload, http::header, web};
use keypool_openapi::{
    AckRequest, CommitRequest, LookupRequest, MAX_KEY_PACKAGE_SIZE, MAX_LOOKUP_USERS, MAX_MESSAGE_SIZE,
    MAX_UPLOAD_BATCH, MessageRequest, ProblemType, RegisterRequest, ReleaseRequest, ReserveRequest, RevokeRequest,
    SpendRequest, UploadRequest,
};
use keypool_validation::token::{Token, bearer};
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use super::{Bearer, Caller};
use crate::{connections::Connection, pool::Pool, problem::Failure};

/// What most bodies need, and much more.
const SMALL_BODY: usize = 128 * 1024;

/// Bodies up to this size take no room: they are bounded with the connections.
const FREE_BODY: usize = 8 * 1024;

/// How long a body may take. A slower one would hold a connection, and delay the end of a server that stops.
const BODY_TIMEOUT: Duration = Duration::from_secs(20);

/// The name of the header that makes a request one that may be repeated.
const IDEMPOTENCY_KEY: &str = "Idempotency-Key";
const IDEMPOTENCY_KEY_LIMIT: usize = 255;

/// A request's body: how large it may be, in bytes. It is refused before it is read.
pub(crate) trait Body: DeserializeOwned + 'static {
    const LIMIT: usize = SMALL_BODY;
}

impl Body for RegisterRequest {
    /// Two names, from a caller who may be a stranger.
    const LIMIT: usize = 8 * 1024;
}
impl Body for LookupRequest {
    /// A thousand of the longest names.
    const LIMIT: usize = MAX_LOOKUP_USERS * 160;
}
impl Body for ReserveRequest {}
impl Body for SpendRequest {}
impl Body for ReleaseRequest {}
impl Body for RevokeRequest {}
impl Body for AckRequest {}
impl Body for CommitRequest {
    /// A Commit and a Welcome in base64, and room for a thousand names.
    const LIMIT: usize = 2 * MAX_MESSAGE_SIZE * 4 / 3 + 512 * 1024;
}
impl Body for MessageRequest {
    const LIMIT: usize = MAX_MESSAGE_SIZE * 4 / 3 + 512 * 1024;
}
impl Body for UploadRequest {
    /// A full upload of the largest KeyPackages in base64, and room for the JSON around them.
    const LIMIT: usize = MAX_UPLOAD_BATCH * MAX_KEY_PACKAGE_SIZE * 4 / 3 + 64 * 1024;
}

/// The operator, known by the admin token.
pub(crate) struct Admin;

/// Who may read what is not a device's alone: every device, and the operator.
pub(crate) enum Reader {
    Device(Caller),
    Admin,
}

/// Who makes a request, where it may be nobody yet.
pub(crate) struct MaybeBearer(pub Option<Bearer>);

/// A device's request: the caller, and then the body, which is not even read before the caller is known.
pub(crate) struct Signed<T>(pub Caller, pub T);

/// A request's body, of whomever.
pub(crate) struct Content<T>(pub T);

/// The parameters behind the `?`.
pub(crate) struct Params<T>(pub T);

/// The SHA-256 of the request's `Idempotency-Key`, and how long the key was.
pub(crate) struct IdempotencyHeader(pub Option<([u8; 32], usize)>);

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
                    "The admin token is no device's, and this call is about a device's own pool. Use a device's token.",
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
                    "This call is the operator's. Send the server's admin token.",
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
                Some(Bearer::Enrolment(_) | Bearer::Foreign(_)) => Err(unknown_token()),
                None => Err(no_token()),
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
            if matches!(bearer, None | Some(Bearer::Enrolment(_) | Bearer::Foreign(_))) {
                let strangers = pool_of(&request)?.strangers();
                let origin = strangers.origin(&request);
                strangers.admit(origin)?;
                strangers.count(origin);
            }
            Ok(Self(bearer))
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
            Failure::new(
                ProblemType::MalformedRequest,
                format!("The parameters behind the `?` cannot be read: {error}."),
            )
        }))
    }
}

impl FromRequest for IdempotencyHeader {
    type Error = Failure;
    type Future = std::future::Ready<Result<Self, Failure>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let Some(value) = request.headers().get(IDEMPOTENCY_KEY) else { return std::future::ready(Ok(Self(None))) };
        let key = value.as_bytes();
        let visible = key.iter().all(u8::is_ascii_graphic);
        std::future::ready(if visible && (1..=IDEMPOTENCY_KEY_LIMIT).contains(&key.len()) {
            Ok(Self(Some((Sha256::digest(key).into(), key.len()))))
        } else {
            Err(Failure::new(
                ProblemType::MalformedRequest,
                "The Idempotency-Key is not 1 to 255 visible ASCII characters. Send a random one, such as a UUID.",
            ))
        })
    }
}

/// Takes room for a body that is not small, which the request has until it is over. Who does not say how large it is takes as
/// much as there may be.
fn make_room<T: Body>(request: &HttpRequest) -> Result<(), Failure> {
    let announced = request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    let bytes = announced.unwrap_or(T::LIMIT);
    // What is larger than it may be is not read.
    if (FREE_BODY + 1..=T::LIMIT).contains(&bytes) {
        let room = pool_of(request)?.room_for(bytes)?;
        request.extensions_mut().insert(room);
    }
    Ok(())
}

/// Reads a body as JSON, whatever its label says: `curl -d` labels everything as a form.
async fn read<T: Body>(request: &HttpRequest, payload: &mut Payload) -> Result<T, Failure> {
    use actix_web::error::JsonPayloadError as E;
    make_room::<T>(request)?;
    let connection = request.conn_data::<Rc<Connection>>();
    connection.inspect(|connection| connection.reads_body());
    let body = web::JsonBody::<T>::new(request, payload, Some(&|_| true), false).limit(T::LIMIT);
    let body = tokio::time::timeout(BODY_TIMEOUT, body).await.map_err(|_| {
        Failure::new(
            ProblemType::MalformedRequest,
            format!("The body did not arrive within {} s. Send it again, faster or in parts.", BODY_TIMEOUT.as_secs()),
        )
    })?;
    if body.is_ok() {
        connection.inspect(|connection| connection.has_body());
    }
    body.map_err(|error| match error {
        E::Overflow { .. } | E::OverflowKnownLength { .. } => Failure::new(
            ProblemType::PayloadTooLarge,
            format!("The body is larger than the {} bytes that this call reads. Send less at a time.", T::LIMIT),
        ),
        E::Deserialize(error) => Failure::new(
            ProblemType::MalformedRequest,
            format!("The body does not match what this call expects: {error}."),
        ),
        _ => Failure::new(ProblemType::MalformedRequest, "The body could not be read as JSON. Send it again."),
    })
}

fn no_token() -> Failure {
    Failure::new(
        ProblemType::Unauthenticated,
        "The request carries no bearer token. POST /devices registers a device and answers its token; send it as \
         `Authorization: Bearer TOKEN`.",
    )
}

pub(crate) fn unknown_token() -> Failure {
    Failure::new(
        ProblemType::Unauthenticated,
        "The bearer token is not of any registered device. Check that it is the one that POST /devices answered.",
    )
}

fn pool_of(request: &HttpRequest) -> Result<&web::Data<Pool>, Failure> {
    let pool = request.app_data::<web::Data<Pool>>();
    pool.ok_or_else(|| Failure::new(ProblemType::Internal, "The server was put together without its pool."))
}

/// Whom the request's token belongs to; `None` where it carries none. A device's request is counted.
async fn identify(request: &HttpRequest) -> Result<Option<Bearer>, Failure> {
    let Some(value) = request.headers().get(header::AUTHORIZATION) else { return Ok(None) };
    let value = value.to_str().map_err(|_| unknown_token())?;
    let pool = pool_of(request)?.clone();
    if let Some(token) = Token::from_header(value) {
        let caller = pool.authenticate(&token, pool.strangers().origin(request)).await?.ok_or_else(unknown_token)?;
        request.conn_data::<Rc<Connection>>().inspect(|connection| connection.is_a_devices());
        return Ok(Some(Bearer::Device(caller)));
    }
    let token = bearer(value).ok_or_else(unknown_token)?;
    if pool.is_admin(token) {
        return Ok(Some(Bearer::Admin));
    }
    Ok(Some(match Token::enrolment_from(token) {
        Some(enrolment) => Bearer::Enrolment(enrolment.hash()),
        None => Bearer::Foreign(token.into()),
    }))
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
