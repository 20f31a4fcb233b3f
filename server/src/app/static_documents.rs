//! The OpenAPI document and Swagger UI: the same bytes for everybody who asks.

use std::{borrow::Cow, collections::HashMap, sync::Arc};

use actix_web::{
    HttpResponse, get,
    web::{self, Bytes},
};
use keypool_openapi::ProblemType;
use utoipa_swagger_ui::Config;

use crate::{answers::Shared, problem::Failure};

/// Where Swagger UI finds the document.
const DOCUMENT: &str = "/openapi.json";

/// The files of Swagger UI that a browser asks for; others that come with it are never used.
const PAGES: [&str; 9] = [
    "",
    "index.html",
    "index.css",
    "swagger-ui.css",
    "swagger-ui-bundle.js",
    "swagger-ui-standalone-preset.js",
    "swagger-initializer.js",
    "favicon-16x16.png",
    "favicon-32x32.png",
];

/// A file as it is sent.
struct Page {
    bytes: Bytes,
    content_type: String,
}

/// All of them, made once.
pub(super) struct StaticDocuments {
    openapi: Bytes,
    pages: HashMap<&'static str, Page>,
}

impl StaticDocuments {
    /// # Errors
    /// When the document cannot be written as JSON, or a file of Swagger UI is not there.
    pub(super) fn new(document: &utoipa::openapi::OpenApi) -> anyhow::Result<Self> {
        let config = Arc::new(Config::from(DOCUMENT));
        let mut pages = HashMap::new();
        for path in PAGES {
            let file =
                utoipa_swagger_ui::serve(path, Arc::clone(&config)).map_err(|error| anyhow::anyhow!("{error}"))?;
            let Some(file) = file else { continue };
            let bytes = match file.bytes {
                Cow::Borrowed(bytes) => Bytes::from_static(bytes),
                Cow::Owned(bytes) => bytes.into(),
            };
            pages.insert(path, Page { bytes, content_type: file.content_type });
        }
        Ok(Self { openapi: document.to_json()?.into(), pages })
    }
}

fn shared(bytes: &Bytes, content_type: &str) -> HttpResponse {
    let mut response = HttpResponse::Ok().content_type(content_type).body(bytes.clone());
    response.extensions_mut().insert(Shared);
    response
}

#[get("/openapi.json")]
pub(super) async fn openapi(documents: web::Data<StaticDocuments>) -> HttpResponse {
    shared(&documents.openapi, "application/json")
}

#[get("/swagger-ui/{path:.*}")]
pub(super) async fn swagger_ui(
    documents: web::Data<StaticDocuments>,
    path: web::Path<String>,
) -> Result<HttpResponse, Failure> {
    let page = documents.pages.get(path.as_str()).ok_or_else(|| {
        let detail = format!("Swagger UI has no file {path}. All calls are listed at /swagger-ui/.");
        Failure::new(ProblemType::NotFound, detail)
    })?;
    Ok(shared(&page.bytes, &page.content_type))
}
