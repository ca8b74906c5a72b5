//! The id of a request.

use actix_web::dev::ServiceRequest;
use actix_web::http::header::HeaderName;
use actix_web::{HttpMessage, HttpRequest};

use crate::base::{ids, time};

/// Name of the header that carries the request id.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Maximum number of characters in a client's request id.
const REQUEST_ID_MAX: usize = 128;

/// Identifies one request in answers and in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(pub String);

impl RequestId {
    /// The client's id if it's sane and the only one, otherwise a new one.
    pub fn of(req: &ServiceRequest) -> Self {
        let mut sent = req.headers().get_all(&X_REQUEST_ID).map(|value| value.to_str().unwrap_or_default());
        match (sent.next(), sent.next()) {
            (Some(id), None) if Self::is_sane(id) => Self(id.to_owned()),
            _ => Self(format!("req_{}", ids::v7(time::now()).as_simple())),
        }
    }

    /// True if a client's id can be taken over: 1 to 128 letters, digits, `.`, `_` or `-`.
    pub(crate) fn is_sane(id: &str) -> bool {
        (1..=REQUEST_ID_MAX).contains(&id.len())
            && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
    }

    /// The id of a request that passed through the middleware, which sets it.
    pub fn from_request(req: &HttpRequest) -> Self {
        req.extensions().get::<Self>().cloned().expect("the middleware sets it on every request")
    }
}
