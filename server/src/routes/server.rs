//! The server itself: what clients and people find at `/`.

use actix_web::{HttpRequest, HttpResponse, get, http::header, web};
use keypool_openapi::ServerInfo;

/// The page for people. Its links are relative, so that it works behind a path prefix.
const PAGE: &str = include_str!("server.html");

/// Get what a client has to know of the server: its ciphersuites, and its limits.
///
/// A browser gets a page with links to the documentation.
#[utoipa::path(
    tag = "operations",
    security(()),
    responses((status = 200, description = "The server's ciphersuites and limits", body = ServerInfo))
)]
#[get("/")]
pub(crate) async fn get_server(info: web::Data<ServerInfo>, request: HttpRequest) -> HttpResponse {
    let accepted = request.headers().get(header::ACCEPT).and_then(|accepted| accepted.to_str().ok());
    let mut response = HttpResponse::Ok();
    response.insert_header((header::VARY, "Accept"));
    if accepted.is_some_and(|accepted| accepted.contains("text/html")) {
        return response.content_type("text/html; charset=utf-8").body(PAGE);
    }
    response.json(&**info)
}
