//! Paths of requests.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

/// Returns the `n`-th segment of a path, counted from 0 and percent-decoded: of `/v1/charges/ch_1`, 2 is
/// `ch_1`. It's decoded after splitting, so that an encoded slash belongs to its segment.
pub fn segment(path: &str, n: usize) -> Cow<'_, str> {
    let segment = path.split('/').skip(1).nth(n).unwrap_or_default();
    percent_decode_str(segment).decode_utf8_lossy()
}
