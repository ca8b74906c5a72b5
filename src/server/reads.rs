//! What holds of every `GET`, whatever its handler: `HEAD`, and conditions.

use actix_web::HttpResponse;
use actix_web::body::{EitherBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::Method;
use actix_web::http::header::{self, HeaderMap, HeaderName};
use actix_web::middleware::Next;

use crate::base::preconditions::Precondition;
use crate::error::{Error, Failure};

/// Headers that an answer without a change repeats from the full one (RFC 9110, section 15.4.5).
const REPEATED: [HeaderName; 6] = [
    header::CACHE_CONTROL,
    header::CONTENT_LOCATION,
    header::DATE,
    header::ETAG,
    header::EXPIRES,
    header::VARY,
];

/// Handles a `HEAD` as a `GET`, of which actix-web then sends the head only. Replaces the answer to a read
/// whose conditions (RFC 9110, section 13) don't hold for the `ETag` that it has, or hasn't: nothing was done,
/// so it's never too late.
pub async fn finish<B: MessageBody + 'static>(
    mut req: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<EitherBody<B>>, actix_web::Error> {
    if req.method() == Method::HEAD {
        req.head_mut().method = Method::GET;
    }
    let response = next.call(req).await?;
    if response.request().method() != Method::GET || !response.status().is_success() {
        return Ok(response.map_into_left_body());
    }
    match precondition(response.request().headers(), response.headers()) {
        Precondition::Holds => Ok(response.map_into_left_body()),
        Precondition::IfMatchFails => {
            let (req, _) = response.into_parts();
            let refused = ServiceResponse::from_err(Error::from(Failure::PreconditionFailed), req);
            Ok(refused.map_into_right_body())
        }
        Precondition::IfNoneMatchFails => {
            let mut unchanged = HttpResponse::NotModified().finish();
            for name in REPEATED {
                for value in response.headers().get_all(&name) {
                    unchanged.headers_mut().append(name.clone(), value.clone());
                }
            }
            Ok(response.into_response(unchanged).map_into_right_body())
        }
    }
}

fn precondition(asked: &HeaderMap, answered: &HeaderMap) -> Precondition {
    let values = |name| asked.get_all(name).map(|value| value.as_bytes());
    let current = answered.get(header::ETAG).map(|value| value.as_bytes());
    Precondition::of(values(header::IF_MATCH), values(header::IF_NONE_MATCH), current)
}
