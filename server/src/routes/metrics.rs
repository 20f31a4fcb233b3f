//! Metrics.

use actix_web::{HttpResponse, get, web};
use keypool_openapi::ProblemType;

use crate::{metrics::Metrics, problem::Failure};

/// Get the server's metrics, for Prometheus.
#[utoipa::path(
    tag = "operations",
    security(()),
    responses((status = 200, description = "Counters, gauges and histograms in the text format", body = String, content_type = "text/plain"))
)]
#[get("/metrics")]
pub(crate) async fn get_metrics(metrics: web::Data<Metrics>) -> Result<HttpResponse, Failure> {
    let text = metrics.render().map_err(|error| {
        tracing::error!(%error, "the metrics cannot be encoded");
        Failure::new(ProblemType::Internal, "The metrics cannot be encoded; the server's log says why.")
    })?;
    Ok(HttpResponse::Ok().content_type(prometheus::TEXT_FORMAT).body(text))
}
