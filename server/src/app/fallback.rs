//! Answers requests that match no route.

use std::collections::BTreeSet;

use actix_web::{HttpRequest, HttpResponse, dev::ResourceDef, web};
use keypool_openapi::ProblemType;
use utoipa::openapi::{OpenApi, PathItem};

use crate::problem::{About, Failure};

/// The paths of the OpenAPI document, each with its methods.
pub(super) struct Paths(Vec<(ResourceDef, BTreeSet<&'static str>)>);

impl Paths {
    pub(super) fn of(document: &OpenApi) -> Self {
        let path = |(path, item): (&String, &PathItem)| (ResourceDef::new(path.as_str()), methods(item));
        Self(document.paths.paths.iter().map(path).collect())
    }

    /// Returns the methods of a path if the document has it. As in OpenAPI, an exact path takes precedence over one
    /// with parameters.
    fn methods(&self, path: &str) -> Option<String> {
        let matching = || self.0.iter().filter(|(pattern, _)| pattern.is_match(path));
        let exact = matching().find(|(pattern, _)| pattern.pattern() == Some(path));
        let methods: BTreeSet<_> = match exact {
            Some((_, methods)) => methods.clone(),
            None => matching().flat_map(|(_, methods)| methods).copied().collect(),
        };
        (!methods.is_empty()).then(|| methods.into_iter().collect::<Vec<_>>().join(", "))
    }
}

fn methods(item: &PathItem) -> BTreeSet<&'static str> {
    let get = &item.get;
    let all = [("DELETE", &item.delete), ("GET", get), ("HEAD", get), ("POST", &item.post), ("PUT", &item.put)];
    all.into_iter().filter(|(_, operation)| operation.is_some()).map(|(method, _)| method).collect()
}

/// Answers a request that no route matches.
pub(super) async fn nothing_here(paths: web::Data<Paths>, request: HttpRequest) -> Result<HttpResponse, Failure> {
    let (method, path) = (request.method(), request.path());
    let Some(allow) = paths.methods(path) else {
        let detail = format!("There is no call at {path}. See /swagger-ui/ for all calls.");
        return Err(Failure::new(ProblemType::NotFound, detail));
    };
    let detail = format!("{path} does not allow {method}; use {allow}. See /swagger-ui/ for all calls.");
    Err(Failure { about: About::Methods(allow), ..Failure::new(ProblemType::MethodNotAllowed, detail) })
}
