//! Wishes for another protocol, which are ignored (RFC 9110, section 7.8): the request is answered as it is.
//!
//! actix-http closes the connection of a request with `Connection: upgrade` without saying so, and takes what follows
//! `Upgrade: websocket` for a body without end. Java's HTTP client asks for HTTP/2 in that way, and loses the next request.

const UPGRADE: &[u8] = b"upgrade";
/// What stands in its place: the lengths stay the same.
const IGNORED: &[u8] = b"ignored";

/// Hides the wish in a head, as far as it has been received.
pub(super) fn hide(bytes: &mut [u8]) {
    let mut is_first = true;
    for line in bytes.split_inclusive_mut(|byte| *byte == b'\n') {
        if std::mem::take(&mut is_first) {
            continue;
        }
        if matches!(&*line, b"\n" | b"\r\n") {
            return;
        }
        // Whoever hasn't ended a line goes on with it, so it's looked at again.
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = line.split_at_mut(colon);
        if name.eq_ignore_ascii_case(UPGRADE) {
            name.copy_from_slice(IGNORED);
        } else if name.eq_ignore_ascii_case(b"connection") {
            for option in value[1..].split_mut(|byte| *byte == b',') {
                let begin = option.iter().position(|byte| !byte.is_ascii_whitespace()).unwrap_or(0);
                let length = option[begin..].trim_ascii_end().len();
                let option = &mut option[begin..begin + length];
                if option.eq_ignore_ascii_case(UPGRADE) {
                    option.copy_from_slice(IGNORED);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_wish_is_hidden() {
        for (sent, passed_on) in [
            ("GET / HTTP/1.1\r\nUpgrade: h2c\r\n\r\n", "GET / HTTP/1.1\r\nignored: h2c\r\n\r\n"),
            (
                "GET / HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\n\r\n",
                "GET / HTTP/1.1\r\nConnection: ignored, HTTP2-Settings\r\n\r\n",
            ),
            (
                "GET / HTTP/1.1\nconnection:close ,\tUPGRADE\n\n",
                "GET / HTTP/1.1\nconnection:close ,\tignored\n\n",
            ),
            ("upgrade: a\r\nX-Upgrade: upgrade\r\n", "upgrade: a\r\nX-Upgrade: upgrade\r\n"),
            ("POST / HTTP/1.1\r\nHost: x\r\n\r\nUpgrade: a", "POST / HTTP/1.1\r\nHost: x\r\n\r\nUpgrade: a"),
            ("GET / HTTP/1.1\r\nConnection:\r\n\r\n", "GET / HTTP/1.1\r\nConnection:\r\n\r\n"),
            ("GET / HTTP/1.1\r\nConnection: upgr", "GET / HTTP/1.1\r\nConnection: upgr"),
        ] {
            let mut bytes = sent.as_bytes().to_vec();
            hide(&mut bytes);
            assert_eq!(String::from_utf8(bytes).unwrap(), passed_on);
        }
    }
}
