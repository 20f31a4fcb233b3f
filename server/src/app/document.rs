//! The routes, and the OpenAPI document generated from them.

mod bodies;
mod examples;

use actix_web::App;
use keypool_openapi::{GroupId, Problem, ProblemType};
use serde_json::json;
use utoipa::{
    Modify, OpenApi,
    openapi::{
        Content, Header, Ref, RefOr, Response,
        example::ExampleBuilder,
        path::Operation,
        schema::{ObjectBuilder, Type},
        security::{Http, HttpAuthScheme, SecurityScheme},
    },
};
use utoipa_actix_web::AppExt;

use crate::{
    config::Config,
    problem::{PROBLEM_JSON, table},
    routes::{devices, groups, health, keypackages, messages, metrics},
};

/// The extension in which a route names the problems of its own; the document has them as responses instead.
const PROBLEMS: &str = "x-problems";

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Keypool",
        description = "The KeyPackage directory of an MLS (RFC 9420) messenger: devices upload single-use KeyPackages, others \
                       reserve them to add the device to a group, and spend them when the Commit is out. Nothing is handed \
                       out twice.\n\nEvery error is an `application/problem+json` (RFC 9457) with a stable `type`. Every \
                       answer carries an `X-Request-Id`, the request's own where it has one.",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0")
    ),
    modifiers(&Bearer),
    security(("bearer" = [])),
    components(schemas(GroupId, Problem)),
    tags(
        (name = "devices", description = "Who is there"),
        (name = "keypackages", description = "The pool"),
        (name = "groups", description = "Commits and messages on their way to members"),
        (name = "messages", description = "A device's own queue"),
        (name = "operations", description = "Running the service")
    )
)]
struct Document;

struct Bearer;

impl Modify for Bearer {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let mut bearer = Http::new(HttpAuthScheme::Bearer);
        bearer.description = Some(
            "A device's token, as POST /devices answers it. The operator's calls take the server's admin token."
                .to_owned(),
        );
        openapi.components.get_or_insert_default().add_security_scheme("bearer", SecurityScheme::Http(bearer));
    }
}

/// Documents every problem of every operation: those that its route names, and those that its form brings with it.
struct Problems;

impl Modify for Problems {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        for item in openapi.paths.paths.values_mut() {
            for operation in operations(item) {
                for kind in problems(operation) {
                    document_problem(operation, kind);
                }
            }
        }
    }
}

/// The operations of a path.
fn operations(item: &mut utoipa::openapi::PathItem) -> impl Iterator<Item = &mut Operation> {
    [&mut item.get, &mut item.post, &mut item.put, &mut item.patch, &mut item.delete].into_iter().flatten()
}

fn problems(operation: &mut Operation) -> Vec<ProblemType> {
    use ProblemType as P;
    let mut kinds = Vec::new();
    let own = operation.extensions.as_mut().and_then(|extensions| extensions.remove(PROBLEMS));
    if let Some(serde_json::Value::Array(names)) = own {
        kinds.extend(names.iter().filter_map(|name| name.as_str()?.parse::<P>().ok()));
    }
    if operation.request_body.is_some() {
        kinds.extend([P::MalformedRequest, P::PayloadTooLarge]);
    }
    if operation.parameters.as_ref().is_some_and(|parameters| !parameters.is_empty()) {
        kinds.push(P::MalformedRequest);
    }
    // A route without a security of its own has the document's: a bearer token.
    if operation.security.is_none() {
        kinds.extend([P::Unauthenticated, P::Forbidden, P::TooManyRequests]);
    }
    let may_fail = operation.operation_id.as_deref() != Some("healthz");
    if may_fail {
        kinds.extend([P::Unavailable, P::Internal]);
    }
    kinds.sort_unstable();
    kinds.dedup();
    kinds
}

fn document_problem(operation: &mut Operation, kind: ProblemType) {
    let (status, title) = table(kind);
    let responses = operation.responses.responses.entry(status.as_str().to_owned());
    let RefOr::T(response) = responses.or_insert_with(|| RefOr::T(Response::default())) else { return };
    if !response.description.is_empty() {
        response.description.push_str("; ");
    }
    let description = format!("`{kind}`: {title}");
    response.description.push_str(&description);
    add_headers(response, kind);
    let content = response
        .content
        .entry(PROBLEM_JSON.to_owned())
        .or_insert_with(|| RefOr::T(Content::new(Some(Ref::from_schema_name("Problem")))));
    let RefOr::T(content) = content else { return };
    let detail = "What happened here, to what, and what to do next.";
    let value = json!({"type": kind, "title": title, "status": status.as_u16(), "detail": detail});
    content.examples.insert(kind.to_string(), ExampleBuilder::new().value(Some(value)).build().into());
}

fn add_headers(response: &mut Response, kind: ProblemType) {
    let header = |type_, description: &str| {
        let mut header = Header::new(ObjectBuilder::new().schema_type(type_));
        header.description = Some(description.to_owned());
        header
    };
    match kind {
        ProblemType::Unavailable | ProblemType::TooManyRequests => {
            let wait = header(Type::Integer, "Seconds after which the same request may work.");
            response.headers.insert("Retry-After".to_owned(), wait.into());
        }
        ProblemType::Unauthenticated => {
            response.headers.insert("WWW-Authenticate".to_owned(), header(Type::String, "`Bearer`.").into());
        }
        _ => {}
    }
}

pub(super) fn routes(config: &mut utoipa_actix_web::service_config::ServiceConfig<'_>) {
    // In this order a request is compared with them, also where a route has to be named: what is asked for most comes first,
    // and what has a variable part, which takes a regular expression, last.
    config
        .service(keypackages::reserve)
        .service(keypackages::spend)
        .service(keypackages::status)
        .service(keypackages::upload)
        .service(messages::fetch)
        .service(messages::acknowledge)
        .service(health::healthz)
        .service(health::readyz)
        .service(metrics::metrics)
        .service(keypackages::release)
        .service(keypackages::revoke)
        .service(keypackages::inventory)
        .service(keypackages::audit)
        .service(keypackages::low_pools)
        .service(devices::register)
        .service(devices::list)
        .service(devices::lookup)
        .service(devices::change_token)
        .service(devices::remove)
        .service(devices::remove_any)
        .service(groups::commit)
        .service(groups::send);
}

pub(super) fn document(config: &Config) -> utoipa::openapi::OpenApi {
    let mut document = App::new().into_utoipa_app().openapi(Document::openapi()).configure(routes).split_for_parts().1;
    bodies::Bodies(config).modify(&mut document);
    Problems.modify(&mut document);
    examples::Examples.modify(&mut document);
    document
}

/// The OpenAPI document, as a server of this configuration publishes it, in JSON for people to read.
///
/// # Errors
/// When the document cannot be written as JSON.
pub fn openapi_json(config: &Config) -> anyhow::Result<String> {
    Ok(document(config).to_pretty_json()? + "\n")
}
