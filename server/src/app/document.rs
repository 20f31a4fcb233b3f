//! The OpenAPI document, generated from the routes and the wire types.

mod bodies;
pub(super) mod examples;

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
    routes,
};

/// The extension in which a route names its own `ProblemType`s. The document has them as responses in its place.
const PROBLEMS: &str = "x-problems";

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Keypool",
        description = "The KeyPackage directory of an MLS (RFC 9420) messenger: devices upload single-use KeyPackages, and adders \
                       reserve them to add the device to a group, and spend them when the Commit is out. The server alone \
                       decides who may use which KeyPackage.\n\nEvery error is an `application/problem+json` (RFC 9457) \
                       with a stable `type`. Every answer carries an `X-Request-Id`: the request's own, if it has one.",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0")
    ),
    modifiers(&Bearer),
    security(("bearer" = [])),
    servers((url = ".", description = "This server")),
    components(schemas(GroupId, Problem)),
    tags(
        (name = "devices", description = "Registration, removal and look-up of devices"),
        (name = "keypackages", description = "Pools of KeyPackages"),
        (name = "groups", description = "Commits and messages to members of groups"),
        (name = "messages", description = "A device's own queue"),
        (name = "log", description = "The transparency log: the proof that nothing is handed out twice"),
        (name = "operations", description = "The operator's calls")
    )
)]
struct Document;

struct Bearer;

impl Modify for Bearer {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let mut bearer = Http::new(HttpAuthScheme::Bearer);
        bearer.description = Some(
            "A device's token, from the answer to POST /devices. The operator's calls need the server's admin token."
                .to_owned(),
        );
        openapi.components.get_or_insert_default().add_security_scheme("bearer", SecurityScheme::Http(bearer));
    }
}

/// Documents the problems of every operation: those that its route names, and those of its body, parameters and token.
struct Problems;

impl Modify for Problems {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        for item in openapi.paths.paths.values_mut() {
            for operation in examples::operations(item) {
                for kind in problems(operation) {
                    document_problem(operation, kind);
                }
            }
        }
    }
}

fn problems(operation: &mut Operation) -> Vec<ProblemType> {
    use ProblemType as P;
    let mut kinds = Vec::new();
    let own = operation.extensions.as_mut().and_then(|extensions| extensions.remove(PROBLEMS));
    if let Some(own) = own {
        kinds.extend(
            serde_json::from_value::<Vec<P>>(own).unwrap_or_else(|_| unreachable!("routes name `ProblemType`s")),
        );
    }
    if operation.request_body.is_some() {
        kinds.extend([P::MalformedRequest, P::PayloadTooLarge, P::UnsupportedMediaType]);
    }
    if operation.parameters.as_ref().is_some_and(|parameters| !parameters.is_empty()) {
        kinds.push(P::MalformedRequest);
    }
    // A route without its own security has the document's: a bearer token.
    if operation.security.is_none() {
        kinds.extend([P::Unauthenticated, P::Forbidden, P::TooManyRequests]);
    }
    let may_fail = operation.operation_id.as_deref() != Some("get_health");
    if may_fail {
        kinds.extend([P::Unavailable, P::Internal]);
    }
    kinds.sort_unstable();
    kinds.dedup();
    kinds
}

fn document_problem(operation: &mut Operation, kind: ProblemType) {
    let (status, title) = table(kind);
    let responses = operation.responses.responses.entry(status.to_string());
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
    let detail = "What happened, and what to do next.";
    let value = json!({"type": kind, "title": title, "status": status, "detail": detail});
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
            let wait = header(Type::Integer, "Seconds after which the same request may succeed.");
            response.headers.insert("Retry-After".to_owned(), wait.into());
        }
        ProblemType::Unauthenticated => {
            response.headers.insert("WWW-Authenticate".to_owned(), header(Type::String, "`Bearer`.").into());
        }
        _ => {}
    }
}

pub(super) fn document(config: &Config) -> utoipa::openapi::OpenApi {
    let mut document =
        App::new().into_utoipa_app().openapi(Document::openapi()).configure(routes::register).split_for_parts().1;
    bodies::Bodies(config).modify(&mut document);
    Problems.modify(&mut document);
    examples::Examples.modify(&mut document);
    document
}

/// The OpenAPI document that a server with this configuration publishes, as indented JSON.
///
/// # Errors
/// When the document cannot be encoded as JSON.
pub fn openapi_json(config: &Config) -> anyhow::Result<String> {
    Ok(document(config).to_pretty_json()? + "\n")
}
