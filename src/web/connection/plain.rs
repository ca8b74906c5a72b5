//! Requests as nearly all clients send them, told without decoding them.

use std::mem::MaybeUninit;

use super::REQUEST_LINE_BYTES_MAX;

/// Maximum number of headers of a plain request.
const HEADERS_MAX: usize = 32;

/// The lengths of head and body of the request that begins here. `None` if it isn't all here, or isn't plain: for all
/// that is told here, it may be malformed.
pub(super) fn measure(bytes: &[u8]) -> Option<(usize, u64)> {
    let mut headers = [const { MaybeUninit::uninit() }; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut []);
    let head = match request.parse_with_uninit_headers(bytes, &mut headers) {
        Ok(httparse::Status::Complete(head)) if head <= REQUEST_LINE_BYTES_MAX => head,
        _ => return None,
    };
    let (method, path) = (request.method?, request.path?);
    let is_line_plain = matches!(method, "GET" | "POST" | "PUT" | "PATCH" | "DELETE" | "HEAD")
        && request.version == Some(1)
        && path.starts_with('/')
        && path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/?&=%-._~:,+@".contains(&byte));
    if !is_line_plain {
        return None;
    }
    let (mut hosts, mut body) = (0, None);
    for header in request.headers {
        match header.name.len() {
            4 if header.name.eq_ignore_ascii_case("host") => hosts += 1,
            14 if header.name.eq_ignore_ascii_case("content-length") => {
                if body.is_some() || !header.value.iter().all(u8::is_ascii_digit) {
                    return None;
                }
                body = Some(std::str::from_utf8(header.value).ok()?.parse().ok()?);
            }
            17 if header.name.eq_ignore_ascii_case("transfer-encoding") => return None,
            7 if header.name.eq_ignore_ascii_case("upgrade") => return None,
            10 if header.name.eq_ignore_ascii_case("connection") && !is_usual(header.value) => return None,
            _ => {}
        }
    }
    (hosts == 1).then_some((head, body.unwrap_or(0)))
}

/// Whether a `Connection` header has one of the values that nearly all clients send.
fn is_usual(value: &[u8]) -> bool {
    value.eq_ignore_ascii_case(b"keep-alive") || value.eq_ignore_ascii_case(b"close")
}

#[cfg(test)]
mod tests {
    use actix_codec::Decoder;
    use actix_http::h1::{Codec, Message};
    use actix_web::web::BytesMut;

    use super::*;

    /// The lengths as actix-http reads them. `None` if it can't.
    fn decoded(bytes: &[u8]) -> Option<(usize, u64)> {
        let mut rest = BytesMut::from(bytes);
        let mut codec = Codec::default();
        let Ok(Some(Message::Item(_))) = codec.decode(&mut rest) else { return None };
        let head = bytes.len() - rest.len();
        rest.resize(1_000, b' ');
        let mut body = 0;
        while let Ok(Some(Message::Chunk(Some(chunk)))) = codec.decode(&mut rest) {
            body += chunk.len() as u64;
        }
        Some((head, body))
    }

    #[test]
    fn what_is_plain_is_the_same_to_the_decoder() {
        let lines = [
            "GET / HTTP/1.1",
            "POST /v1/charges?a=%41 HTTP/1.1",
            "HEAD /\u{e9} HTTP/1.1",
            "GET * HTTP/1.1",
            "POST / HTTP/1.0",
        ];
        let headers = [
            "",
            "Host: x\r\n",
            "Host: x\r\nhost: y\r\n",
            "Content-Length: 7\r\n",
            "content-length:  12 \r\n",
            "Content-Length: 0\r\n",
            "Content-Length: +7\r\n",
            "Content-Length: 7\r\nContent-Length: 7\r\n",
            "Content-Length: 99999999999999999999\r\n",
            "Content-Length:\r\n",
            "Transfer-Encoding: chunked\r\n",
            "Upgrade: websocket\r\n",
            "A: \t b\u{e9}\r\n",
            "A\r\n",
            "A : b\r\n",
        ];
        actix_web::rt::System::new().block_on(async {
            let mut plain = 0;
            for line in lines {
                for one in headers {
                    for other in headers {
                        for before in ["", "\r\n"] {
                            let text = format!("{before}{line}\r\n{one}{other}\r\n");
                            if let Some(measured) = measure(text.as_bytes()) {
                                assert_eq!(Some(measured), decoded(text.as_bytes()), "{text}");
                                plain += 1;
                            }
                            assert_eq!(measure(&text.as_bytes()[..text.len() - 1]), None, "{text}");
                        }
                    }
                }
            }
            assert!(plain > 20, "{plain}");
        });
    }

    mod properties {
        use proptest::prelude::*;
        use proptest::test_runner::TestRunner;

        use super::*;

        /// Lines of heads, whole and broken, as they come from clients and from those who try to be read in two ways.
        const LINE: &str = "(GET|POST|HEAD|get|P T) (/|[*]|/[a-z?%&=#. -]{0,8}|[ -~]{0,4}) HTTP/1[.][0-2]";
        const HEADER: &str = "(Host|hOST|Content-Length|Transfer-Encoding|Connection|Upgrade|Expect|A)[ \t]{0,1}:[ \t]{0,2}\
                              ([0-9]{1,20}|[+-]?[0-9]{1,3}|0x1|chunked|identity|keep-alive|close|upgrade|x|[ -~]{0,6}|[0-9],[0-9])[ \t]{0,1}";
        const END: &str = "\r\n|\r\n|\r\n|\r\n|\n|\r|\r\n |\r\r\n";

        #[test]
        fn what_is_plain_is_the_same_to_the_decoder() {
            let ends = prop::collection::vec(END, 7);
            let inputs = (LINE, prop::collection::vec(HEADER, 0..5), ends, "[ -~]{0,8}");
            let agree = |(line, headers, ends, rest): (String, Vec<String>, Vec<String>, String)| {
                let headers: String =
                    headers.iter().zip(&ends).map(|(header, end)| format!("{end}{header}")).collect();
                let text = format!("{line}{headers}{}{}{rest}", ends[5], ends[6]);
                if let Some((head, body)) = measure(text.as_bytes()) {
                    // The decoder is given no more than a thousand bytes.
                    let measured = Some((head, body.min(1_000)));
                    prop_assert_eq!(measured, decoded(text.as_bytes()), "{:?}", text);
                }
                Ok(())
            };
            // The decoder needs a system for its clock.
            let run = async { TestRunner::default().run(&inputs, agree) };
            actix_web::rt::System::new().block_on(run).unwrap();
        }
    }
}
