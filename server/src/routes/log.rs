//! The transparency log.

use actix_web::{
    HttpResponse, get,
    http::header::{CACHE_CONTROL, LOCATION},
    post, web,
};
use keypool_openapi::{CheckpointRequest, LogInfo, ProblemType, ProofsRequest, ProofsResponse};
use keypool_transparency::tile::TileId;

use crate::{
    auth::{LogReader, Signed},
    problem::Failure,
    service::Service,
};

/// A tile never changes.
const FOR_EVER: &str = "public, max-age=31536000, immutable";

/// A checkpoint is outdated at once.
const NOT_AT_ALL: &str = "no-store";

/// Get the server's transparency logs.
///
/// The server logs each hand-out of a KeyPackage, so that everybody can verify that none was handed out twice. `docs/transparency.md`
/// has the formats.
#[utoipa::path(
    tag = "log",
    security((), ("bearer" = [])),
    responses((status = 200, description = "The newest log, and those that it continues", body = LogInfo)),
    extensions(("x-problems" = json!([ProblemType::NotFound])))
)]
#[get("/log")]
pub(crate) async fn get_log(service: web::Data<Service>, _: LogReader) -> Result<web::Json<LogInfo>, Failure> {
    Ok(web::Json(service.log_info().await?))
}

/// Get the newest log's checkpoint.
///
/// Leads to the checkpoint of the newest log.
#[utoipa::path(
    tag = "log",
    security((), ("bearer" = [])),
    responses((status = 307, description = "Where the checkpoint is")),
    extensions(("x-problems" = json!([ProblemType::NotFound])))
)]
#[get("/log/checkpoint")]
pub(crate) async fn get_newest_checkpoint(service: web::Data<Service>, _: LogReader) -> Result<HttpResponse, Failure> {
    // Relative, so that it is right behind a path prefix.
    let location = format!("{}/checkpoint", service.log_directory().await?);
    Ok(HttpResponse::TemporaryRedirect().insert_header((LOCATION, location)).finish())
}

/// Get a log's checkpoint.
///
/// The size and the root of the log, signed (C2SP tlog-checkpoint).
#[utoipa::path(
    tag = "log",
    security((), ("bearer" = [])),
    params(("origin" = String, Path, description = "The last part of the log's name", example = "1-89abcdef")),
    responses((status = 200, description = "The signed checkpoint", body = String, content_type = "text/plain")),
    extensions(("x-problems" = json!([ProblemType::NotFound])))
)]
#[get("/log/{origin}/checkpoint")]
pub(crate) async fn get_checkpoint(
    service: web::Data<Service>,
    _: LogReader,
    origin: web::Path<String>,
) -> Result<HttpResponse, Failure> {
    let note = service.log_checkpoint(origin.into_inner()).await?;
    Ok(HttpResponse::Ok()
        .content_type("text/plain; charset=utf-8")
        .insert_header((CACHE_CONTROL, NOT_AT_ALL))
        .body(note))
}

/// Get a tile of a log.
///
/// Hashes or entries of the log (C2SP tlog-tiles): `tile/<level>/<index>`, or `tile/entries/<index>`, with `.p/<width>` behind
/// it for one that is not full.
#[utoipa::path(
    tag = "log",
    security((), ("bearer" = [])),
    params(
        ("origin" = String, Path, description = "The last part of the log's name", example = "1-89abcdef"),
        ("tile" = String, Path, description = "The tile's path", example = "entries/000.p/1"),
    ),
    responses((status = 200, description = "The tile", body = Vec<u8>, content_type = "application/octet-stream")),
    extensions(("x-problems" = json!([ProblemType::NotFound])))
)]
#[get("/log/{origin}/tile/{tile:.*}")]
pub(crate) async fn get_tile(
    service: web::Data<Service>,
    _: LogReader,
    path: web::Path<(String, String)>,
) -> Result<HttpResponse, Failure> {
    let (origin, path) = path.into_inner();
    // Generated clients write a slash in a parameter as %2F.
    let path = path.replace("%2F", "/");
    let tile: TileId = format!("tile/{path}").parse().map_err(|error| {
        let detail = format!("tile/{path} is no path of a tile: {error}.");
        Failure::new(ProblemType::NotFound, detail)
    })?;
    let bytes = service.log_tile(origin, tile).await?;
    Ok(HttpResponse::Ok().content_type("application/octet-stream").insert_header((CACHE_CONTROL, FOR_EVER)).body(bytes))
}

/// Compare a checkpoint that the caller has with the log.
///
/// The server knows the checkpoint's log, and has all its leaves. If not, its database went back to a backup, or was copied: send
/// the newest checkpoint that you have after the server was not reachable, and keep it if it is refused.
#[utoipa::path(
    tag = "log",
    request_body = CheckpointRequest,
    responses((status = 204, description = "The log continues the checkpoint")),
    extensions(("x-problems" = json!([ProblemType::LogRolledBack, ProblemType::LogForked, ProblemType::NotFound])))
)]
#[post("/log/checkpoint")]
pub(crate) async fn compare_checkpoint(
    service: web::Data<Service>,
    Signed(_caller, request): Signed<CheckpointRequest>,
) -> Result<HttpResponse, Failure> {
    service.compare_checkpoint(request).await?;
    Ok(HttpResponse::NoContent().finish())
}

/// Prove what the log has of the caller's hand-outs.
///
/// For reservations that the caller made, and for KeyPackages of its own pool: the leaf of each step with its path to one
/// checkpoint, and what it commits to, as much as the caller may see. An adder sees how earlier hand-outs of the KeyPackage
/// ended, and its own. An owner sees all of its own, without groups that it was not added to. Steps of KeyPackages that the
/// server has forgotten are left out. With `receipt`, the server signs what is not in the log yet. With `since`, it shows how the
/// checkpoint continues the one that the caller has.
#[utoipa::path(
    tag = "log",
    request_body = ProofsRequest,
    responses((status = 200, description = "What was found of each step", body = ProofsResponse)),
    extensions(("x-problems" = json!([ProblemType::NotYourReservation, ProblemType::NotFound])))
)]
#[post("/log/proofs")]
pub(crate) async fn prove_steps(
    service: web::Data<Service>,
    Signed(caller, request): Signed<ProofsRequest>,
) -> Result<HttpResponse, Failure> {
    Ok(HttpResponse::Ok().json(service.log_proofs(caller, request).await?))
}
