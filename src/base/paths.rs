//! Paths of requests.

use std::borrow::Cow;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode};

/// Characters that a segment can't hold as they are (RFC 3986, section 3.3).
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'!')
    .remove(b'$')
    .remove(b'&')
    .remove(b'\'')
    .remove(b'(')
    .remove(b')')
    .remove(b'*')
    .remove(b'+')
    .remove(b',')
    .remove(b';')
    .remove(b'=')
    .remove(b':')
    .remove(b'@');

/// Returns the `n`-th segment of a path, counted from 0 and percent-decoded: of `/v1/charges/ch_1`, 2 is
/// `ch_1`. It's decoded after splitting, so that an encoded slash belongs to its segment.
pub fn segment(path: &str, n: usize) -> Cow<'_, str> {
    let segment = path.split('/').skip(1).nth(n).unwrap_or_default();
    percent_decode_str(segment).decode_utf8_lossy()
}

/// Returns the one spelling of a path: two paths have the same if their segments are the same when decoded.
/// `/v1/%63harges` becomes `/v1/charges`, and `%2f` becomes `%2F`, which is no slash.
///
/// Empty segments and dots stay. The router knows no path with them, so they aren't other spellings.
pub fn normalized(path: &str) -> Cow<'_, str> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'_' | b'-' | b'.');
    if path.bytes().all(is_plain) {
        return Cow::Borrowed(path);
    }
    let segments = path.split('/').map(|segment| {
        let decoded: Vec<u8> = percent_decode_str(segment).collect();
        percent_encode(&decoded, ENCODED).to_string()
    });
    Cow::Owned(segments.collect::<Vec<_>>().join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equivalent_paths_have_one_spelling() {
        for (path, spelling) in [
            ("/v1/charges/ch_1", "/v1/charges/ch_1"),
            ("/v1/%63harges", "/v1/charges"),
            ("/%76%31/charges/ch%5F1", "/v1/charges/ch_1"),
            ("/v1/idempotency-keys/a%3db%7E", "/v1/idempotency-keys/a=b~"),
            ("/v1/idempotency-keys/a%2fb", "/v1/idempotency-keys/a%2Fb"),
            ("/v1/idempotency-keys/a%2Fb", "/v1/idempotency-keys/a%2Fb"),
            ("/v1/idempotency-keys/a%25b", "/v1/idempotency-keys/a%25b"),
            ("/v1/idempotency-keys/a%b", "/v1/idempotency-keys/a%25b"),
            ("/v1/idempotency-keys/%c3%A9%ff", "/v1/idempotency-keys/%C3%A9%FF"),
            ("/v1//charges/../%2E/", "/v1//charges/.././"),
        ] {
            assert_eq!(normalized(path), spelling, "{path}");
            assert_eq!(normalized(spelling), spelling, "{path}");
        }
    }
}

#[cfg(test)]
mod properties {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_path_has_one_spelling_with_the_same_segments(path in "(/([a-c/._~!$&'()*+,;=:@-]|%[0-9a-fA-F]{2}|%|\\PC){0,6}){1,3}") {
            let spelling = normalized(&path);
            prop_assert_eq!(normalized(&spelling), &spelling[..]);
            prop_assert_eq!(path.split('/').count(), spelling.split('/').count());
            for n in 0..path.split('/').count() {
                prop_assert_eq!(segment(&path, n), segment(&spelling, n));
            }
        }
    }
}
