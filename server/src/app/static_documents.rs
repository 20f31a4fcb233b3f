//! The OpenAPI document and Swagger UI: all requests share their bytes.

use std::{
    borrow::Cow,
    collections::HashMap,
    io::Write as _,
    sync::{Arc, OnceLock},
};

use actix_web::{
    HttpRequest, HttpResponse, get,
    http::header::{self, AcceptEncoding, Encoding, Header as _},
    web::{self, Bytes},
};
use flate2::{Compression, write::GzEncoder};
use keypool_openapi::ProblemType;
use utoipa_swagger_ui::Config;

use super::swagger_ui;
use crate::{answers::send::Shared, problem::Failure};

/// The script that starts Swagger UI.
const INITIALIZER: &str = "swagger-initializer.js";

/// The files of Swagger UI that browsers request.
const PAGES: [&str; 9] = [
    "",
    "index.html",
    "index.css",
    "swagger-ui.css",
    "swagger-ui-bundle.js",
    "swagger-ui-standalone-preset.js",
    INITIALIZER,
    "favicon-16x16.png",
    "favicon-32x32.png",
];

/// A static file.
struct Page {
    bytes: Bytes,
    /// The same, compressed by the first request that takes it: a server starts without this work. The file is public,
    /// so its length tells nothing (BREACH).
    gzip: OnceLock<Bytes>,
    content_type: String,
}

impl Page {
    fn new(bytes: Bytes, content_type: String) -> Self {
        Self { bytes, gzip: OnceLock::new(), content_type }
    }

    /// The compressed bytes, or the plain ones if compression fails or saves nothing.
    fn compressed(&self) -> &Bytes {
        self.gzip.get_or_init(|| {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
            match encoder.write_all(&self.bytes).and_then(|()| encoder.finish()) {
                Ok(gzip) if gzip.len() < self.bytes.len() => gzip.into(),
                _ => self.bytes.clone(),
            }
        })
    }

    fn answer(&self, request: &HttpRequest) -> HttpResponse {
        let accepted = AcceptEncoding::parse(request).ok();
        let offered = [Encoding::gzip(), Encoding::identity()];
        let chosen = accepted.and_then(|accepted| accepted.negotiate(offered.iter()));
        let mut response = HttpResponse::Ok();
        response.content_type(self.content_type.as_str()).insert_header((header::VARY, "Accept-Encoding"));
        let bytes = if chosen == Some(Encoding::gzip()) { self.compressed() } else { &self.bytes };
        if bytes.len() < self.bytes.len() {
            response.insert_header((header::CONTENT_ENCODING, "gzip"));
        }
        let mut response = response.body(bytes.clone());
        response.extensions_mut().insert(Shared);
        response
    }
}

/// All static files, made once.
pub(super) struct StaticDocuments {
    openapi: Page,
    pages: HashMap<&'static str, Page>,
}

impl StaticDocuments {
    /// # Errors
    /// When the document cannot be encoded as JSON, or a file of Swagger UI is missing.
    pub(super) fn new(document: &utoipa::openapi::OpenApi) -> anyhow::Result<Self> {
        let config = Arc::new(Config::default());
        let mut pages = HashMap::new();
        for path in PAGES {
            let file =
                utoipa_swagger_ui::serve(path, Arc::clone(&config)).map_err(|error| anyhow::anyhow!("{error}"))?;
            let Some(file) = file else { continue };
            let bytes = match file.bytes {
                _ if path == INITIALIZER => swagger_ui::initializer().into(),
                Cow::Borrowed(bytes) => Bytes::from_static(bytes),
                Cow::Owned(bytes) => bytes.into(),
            };
            pages.insert(path, Page::new(bytes, file.content_type));
        }
        Ok(Self { openapi: Page::new(document.to_json()?.into(), "application/json".to_owned()), pages })
    }
}

#[get("/openapi.json")]
pub(super) async fn openapi(documents: web::Data<StaticDocuments>, request: HttpRequest) -> HttpResponse {
    documents.openapi.answer(&request)
}

#[get("/swagger-ui/{path:.*}")]
pub(super) async fn swagger_ui_file(
    documents: web::Data<StaticDocuments>,
    path: web::Path<String>,
    request: HttpRequest,
) -> Result<HttpResponse, Failure> {
    let page = documents.pages.get(path.as_str()).ok_or_else(|| {
        let detail = format!("Swagger UI has no file {path}. See /swagger-ui/ for all calls.");
        Failure::new(ProblemType::NotFound, detail)
    })?;
    Ok(page.answer(&request))
}

/// Leads to the page. The location is relative, so that it is right behind a path prefix.
#[get("/swagger-ui")]
pub(super) async fn swagger_ui_without_slash() -> HttpResponse {
    HttpResponse::PermanentRedirect().insert_header((header::LOCATION, "swagger-ui/")).finish()
}
