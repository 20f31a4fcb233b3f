//! A failure as an answer: `application/problem+json` (RFC 9457).

use actix_web::{
    HttpResponse, ResponseError,
    http::{StatusCode, header},
};
use keypool_openapi::{Problem, ProblemType};

use super::{About, Failure, PROBLEM_JSON, table, whole_seconds};

impl ResponseError for Failure {
    fn status_code(&self) -> StatusCode {
        StatusCode::from_u16(table(self.kind).0).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    fn error_response(&self) -> HttpResponse {
        let (status, title) = (self.status_code(), table(self.kind).1);
        let mut response = HttpResponse::build(status);
        response.content_type(PROBLEM_JSON);
        if let Some(wait) = self.retry_after {
            response.insert_header((header::RETRY_AFTER, whole_seconds(wait).to_string()));
        }
        if let About::Methods(methods) = &self.about {
            response.insert_header((header::ALLOW, methods.as_str()));
        }
        if self.kind == ProblemType::Unauthenticated {
            response.insert_header((header::WWW_AUTHENTICATE, "Bearer"));
        }
        let (mut missing, mut reservation_id, mut epoch) = (Vec::new(), None, None);
        match &self.about {
            About::Nothing | About::Methods(_) => {}
            About::Missing(devices) => missing.clone_from(devices),
            About::Reservation(id) => reservation_id = Some(*id),
            About::Epoch(number) => epoch = Some(*number),
        }
        response.json(Problem {
            kind: self.kind,
            title: title.to_owned(),
            status: status.as_u16(),
            detail: self.detail.clone(),
            missing,
            reservation_id,
            epoch,
        })
    }
}
