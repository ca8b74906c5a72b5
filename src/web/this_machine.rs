//! Requests from a browser on the same machine, which may be shown what nobody else may: the keys of a development environment.

use actix_web::HttpRequest;
use actix_web::http::{Uri, header};

/// Whether the request names the host by an address or a name that only this machine has for itself. What a proxy would add doesn't count:
/// a page from elsewhere can add it, too.
pub fn is_named_by(request: &HttpRequest) -> bool {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()?.parse::<Uri>().ok());
    host.is_some_and(|host| matches!(host.host(), Some("127.0.0.1" | "localhost" | "[::1]")))
}
