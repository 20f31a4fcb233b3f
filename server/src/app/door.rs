//! Answers requests until the database is open, and gives the routes the database from then on.

use std::{cell::OnceCell, rc::Rc, sync::Arc, time::Duration};

use actix_web::{
    Error,
    body::BoxBody,
    dev::{Extensions, ServiceRequest, ServiceResponse},
    middleware::Next,
    web,
};
use keypool_openapi::ProblemType;
use tokio::{sync::SetOnce, time::timeout};

use crate::{auth::Authenticator, observe::Announced, problem::Failure, service::Service};

/// The path that is answered at any time.
const HEALTH: &str = "/healthz";

/// The path that is answered at once, and with 200 only if the database is open.
const READINESS: &str = "/readyz";

/// The longest that any other request waits for the database. A proxy may send requests before its first check has
/// found that the server is not ready, and most servers are ready within this time.
const PATIENCE: Duration = Duration::from_secs(2);

/// Opens the doors of all workers.
#[derive(Clone, Default)]
pub(super) struct Key(Arc<SetOnce<Opened>>);

/// The values of an open database that the routes ask for.
struct Opened {
    service: web::Data<Service>,
    authenticator: web::Data<Authenticator>,
}

impl Key {
    /// From now on, requests reach the routes.
    pub(super) fn open(&self, service: Service, authenticator: Authenticator) {
        let opened = Opened { service: web::Data::new(service), authenticator: web::Data::new(authenticator) };
        // A key is used once.
        let _ = self.0.set(opened);
    }
}

/// The door of one worker.
pub(super) struct Door {
    key: Key,
    /// The values as actix-web gives them to extractors.
    inside: OnceCell<Rc<Extensions>>,
}

impl Door {
    pub(super) fn new(key: Key) -> Self {
        Self { key, inside: OnceCell::new() }
    }

    fn is_open(&self) -> bool {
        self.key.0.get().is_some()
    }

    fn inside(&self) -> Option<Rc<Extensions>> {
        let opened = self.key.0.get()?;
        let inside = self.inside.get_or_init(|| {
            let mut values = Extensions::new();
            values.insert(opened.service.clone());
            values.insert(opened.authenticator.clone());
            Rc::new(values)
        });
        Some(Rc::clone(inside))
    }
}

/// Lets a request pass if the database is open, or opens soon. Until then, answers everything but `/healthz` with
/// `unavailable`.
pub(super) async fn pass(
    door: web::Data<Door>,
    mut request: ServiceRequest,
    next: Next<BoxBody>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    if !door.is_open() && ![HEALTH, READINESS].contains(&request.path()) {
        let _ = timeout(PATIENCE, door.key.0.wait()).await;
    }
    match door.inside() {
        Some(values) => request.add_data_container(values),
        None if request.path() == HEALTH => {}
        None => {
            let mut response = request.error_response(not_open());
            response.response_mut().extensions_mut().insert(Announced);
            return Ok(response);
        }
    }
    next.call(request).await
}

fn not_open() -> Failure {
    let detail = "The server is starting: it waits for its database, or migrates it. Try again in a moment.";
    Failure::new(ProblemType::Unavailable, detail)
}
