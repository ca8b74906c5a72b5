//! Heads of requests that can't be passed on.

use actix_http::error::ParseError;
use actix_web::http::{Method, Uri};

use crate::error::Error;
use crate::web::request_id::{RequestId, X_REQUEST_ID};

/// Maximum length of a path that a refusal repeats, in bytes.
const PATH_BYTES_MAX: usize = 1024;

/// The error that answers a request in place of its handler.
#[derive(Debug)]
pub struct Refusal(pub Error);

/// The first line of a head, as far as it has been received.
pub(super) fn request_line(head: &[u8]) -> &[u8] {
    lines(head).next().unwrap_or_default()
}

/// The lines of a head.
fn lines(head: &[u8]) -> impl Iterator<Item = &[u8]> {
    head.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line))
}

/// The values of a header, as far as the head can be read.
fn values<'a>(head: &'a [u8], name: &str) -> impl Iterator<Item = &'a [u8]> {
    lines(head).skip(1).take_while(|line| !line.is_empty()).filter_map(move |line| {
        let colon = line.iter().position(|byte| *byte == b':')?;
        line[..colon].eq_ignore_ascii_case(name.as_bytes()).then(|| line[colon + 1..].trim_ascii())
    })
}

/// The reason why actix-http can't parse `head`.
pub(super) fn reason(error: &ParseError, head: &[u8]) -> Error {
    match error {
        ParseError::TooLarge => Error::HeadersTooLarge,
        ParseError::Version if names_other_version(head) => Error::HttpVersionUnsupported,
        _ => Error::RequestMalformed(complaint(head)),
    }
}

/// True if the request line ends with a version of HTTP, though with none that is spoken here.
fn names_other_version(head: &[u8]) -> bool {
    let version = request_line(head).rsplit(|byte| *byte == b' ').next().unwrap_or_default();
    version.strip_prefix(b"HTTP/").is_some_and(|number| number.first().is_some_and(u8::is_ascii_digit))
}

/// The rule of RFC 9112 that `head` breaks. Ends a sentence.
fn complaint(head: &[u8]) -> &'static str {
    // The first byte of a TLS handshake.
    if head.first() == Some(&0x16) {
        return "it begins with a TLS handshake, and this port takes plain HTTP";
    }
    let line: Vec<_> = request_line(head).split(|byte| *byte == b' ').collect();
    let is_line = matches!(line[..], [_, target, version] if Uri::try_from(target).is_ok() && version.starts_with(b"HTTP/1."));
    if !is_line {
        return "its first line isn't a method, a path and `HTTP/1.1`";
    }
    let is_first_version = line[2] == b"HTTP/1.0";
    let count = |name| values(head, name).count();
    match (count("host"), count("content-length"), count("transfer-encoding")) {
        (0, ..) if !is_first_version => "it has no `Host` header",
        (2.., ..) => "it has more than one `Host` header",
        (_, 1.., 1..) => "it has both `Content-Length` and `Transfer-Encoding`",
        (_, 2.., _) => "it has more than one `Content-Length` header",
        (_, _, 1..) if is_first_version => "HTTP/1.0 knows no `Transfer-Encoding`",
        (_, _, 1..) => "its `Transfer-Encoding` isn't `chunked`",
        (_, 0, _) if is_first_version && line[0] == b"POST" => "HTTP/1.0 requires a `Content-Length` here",
        (_, 1, _) if !values(head, "content-length").all(|value| value.iter().all(u8::is_ascii_digit)) => {
            "its `Content-Length` isn't a number"
        }
        _ => "one of its header lines is malformed",
    }
}

/// Makes the head of a request that takes the place of `head`, with what can be told of it: its method, its path and its
/// id. What can't be told shows as `-` and `/`.
pub(super) fn stand_in(head: &[u8]) -> Vec<u8> {
    let mut parts = request_line(head).split(|byte| *byte == b' ');
    let known = [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];
    let sent = parts.next().unwrap_or_default();
    let method = known.iter().find(|known| known.as_str().as_bytes() == sent).map_or("-", Method::as_str);
    let path = parts
        .next()
        .filter(|path| path.starts_with(b"/") && path.len() <= PATH_BYTES_MAX)
        .filter(|path| Uri::try_from(*path).is_ok())
        .and_then(|path| std::str::from_utf8(path).ok())
        .unwrap_or("/");
    let mut text =
        format!("{method} {path} HTTP/1.1\r\nhost: -\r\nconnection: close\r\ncontent-length: 1\r\n");
    let name = X_REQUEST_ID;
    let mut ids = values(head, name.as_str());
    if let (Some(id), None) = (ids.next().and_then(|id| std::str::from_utf8(id).ok()), ids.next())
        && RequestId::is_sane(id)
    {
        text.push_str(&format!("{X_REQUEST_ID}: {id}\r\n"));
    }
    text.push_str("\r\n");
    text.into_bytes()
}
