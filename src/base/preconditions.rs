//! Conditions of requests (RFC 9110, section 13): `If-Match` and `If-None-Match`.
//!
//! The others never decide anything here: without a modification date, `If-Modified-Since` and
//! `If-Unmodified-Since` are to be ignored, and a server without ranges ignores `Range` and `If-Range`.

/// Whether the conditions of a request hold for something that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precondition {
    /// They hold, or there are none.
    Holds,
    /// `If-Match` names only other states, so the request must not be performed.
    IfMatchFails,
    /// `If-None-Match` names the current state, so the request must not be performed.
    IfNoneMatchFails,
}

impl Precondition {
    /// Evaluates the values of the headers `If-Match` and `If-None-Match`, in this order (section 13.2.2).
    /// `current` is the entity tag of the current state. Without one no tag matches, and `*` still does.
    pub fn of<'a>(
        if_match: impl Iterator<Item = &'a [u8]>,
        if_none_match: impl Iterator<Item = &'a [u8]>,
        current: Option<&[u8]>,
    ) -> Self {
        // A tag is strong unless it says otherwise; `If-Match` compares strong ones only.
        let is_current = |tag: &[u8]| current == Some(tag) && !tag.starts_with(WEAK);
        let is_like_current = |tag: &[u8]| current.map(opaque) == Some(opaque(tag));
        if matches_any(if_match, is_current) == Some(false) {
            return Self::IfMatchFails;
        }
        if matches_any(if_none_match, is_like_current) == Some(true) {
            return Self::IfNoneMatchFails;
        }
        Self::Holds
    }
}

/// Prefix of weak tags.
const WEAK: &[u8] = b"W/";

fn opaque(tag: &[u8]) -> &[u8] {
    tag.strip_prefix(WEAK).unwrap_or(tag)
}

/// Whether a header with these values is `*` or has a tag that `is_it`. `None` if the header is absent.
fn matches_any<'a>(values: impl Iterator<Item = &'a [u8]>, is_it: impl Fn(&[u8]) -> bool) -> Option<bool> {
    let values: Vec<_> = values.map(<[u8]>::trim_ascii).collect();
    match values[..] {
        [] => None,
        [b"*"] => Some(true),
        _ => Some(values.into_iter().flat_map(tags).any(is_it)),
    }
}

/// Returns the tags of a list, up to what isn't one.
fn tags(list: &[u8]) -> Vec<&[u8]> {
    let mut tags = Vec::new();
    let mut rest = list;
    loop {
        rest = rest.trim_ascii_start();
        while let Some(more) = rest.strip_prefix(b",") {
            rest = more.trim_ascii_start();
        }
        let prefix = if rest.starts_with(WEAK) { WEAK.len() } else { 0 };
        // A tag can hold a comma, but no quote.
        let Some(quoted) = rest[prefix..].strip_prefix(b"\"") else { return tags };
        let Some(length) = quoted.iter().position(|byte| *byte == b'"') else { return tags };
        let (tag, more) = rest.split_at(prefix + length + 2);
        tags.push(tag);
        rest = more;
    }
}

#[cfg(test)]
mod tests {
    use super::Precondition::{Holds, IfMatchFails, IfNoneMatchFails};
    use super::*;

    fn of(if_match: &[&str], if_none_match: &[&str], current: Option<&str>) -> Precondition {
        Precondition::of(
            if_match.iter().map(|value| value.as_bytes()),
            if_none_match.iter().map(|value| value.as_bytes()),
            current.map(str::as_bytes),
        )
    }

    #[test]
    fn without_a_tag_only_the_asterisk_matches() {
        for (if_match, if_none_match, expected) in [
            (&[][..], &[][..], Holds),
            (&["*"], &[], Holds),
            (&[" * "], &[], Holds),
            (&["\"a\""], &[], IfMatchFails),
            (&["W/\"a\""], &[], IfMatchFails),
            (&["\"*\""], &[], IfMatchFails),
            (&["*", "\"a\""], &[], IfMatchFails),
            (&["a"], &[], IfMatchFails),
            (&[""], &[], IfMatchFails),
            (&[], &["*"], IfNoneMatchFails),
            (&[], &["\"a\""], Holds),
            (&[], &["a"], Holds),
            (&["*"], &["*"], IfNoneMatchFails),
            (&["\"a\""], &["*"], IfMatchFails),
        ] {
            assert_eq!(of(if_match, if_none_match, None), expected, "{if_match:?} {if_none_match:?}");
        }
    }

    #[test]
    fn tags_are_compared_strongly_for_a_match_and_weakly_for_none() {
        for (if_match, if_none_match, current, expected) in [
            (&["\"a\""][..], &[][..], "\"a\"", Holds),
            (&["\"b\", \"a\""], &[], "\"a\"", Holds),
            (&["\"b\"", "\"a\""], &[], "\"a\"", Holds),
            (&[" ,\"b\",,\"a\" ,"], &[], "\"a\"", Holds),
            (&["\"b,\\\", \"a\""], &[], "\"a\"", Holds),
            (&["\"b, \"a\""], &[], "\"a\"", IfMatchFails),
            (&["W/\"a\""], &[], "\"a\"", IfMatchFails),
            (&["\"a\""], &[], "W/\"a\"", IfMatchFails),
            (&["W/\"a\""], &[], "W/\"a\"", IfMatchFails),
            (&[], &["W/\"a\""], "\"a\"", IfNoneMatchFails),
            (&[], &["\"b\", \"a\""], "W/\"a\"", IfNoneMatchFails),
            (&[], &["\"b\""], "\"a\"", Holds),
        ] {
            let found = of(if_match, if_none_match, Some(current));
            assert_eq!(found, expected, "{if_match:?} {if_none_match:?} {current}");
        }
    }
}

#[cfg(test)]
mod properties {
    use proptest::prelude::*;

    use super::*;

    /// A tag by the grammar, with a comma or a backslash in it now and then.
    const TAG: &str = r#"(W/)?"[!#-~]{0,6}""#;

    proptest! {
        #[test]
        fn any_bytes_are_a_list_of_tags_or_of_none(list in r#"[W/",*a ]{0,24}"#, bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            for list in [list.as_bytes(), &bytes] {
                for tag in tags(list) {
                    let inner = opaque(tag);
                    prop_assert!(inner.len() >= 2 && inner.starts_with(b"\"") && inner.ends_with(b"\""));
                    prop_assert_eq!(inner.iter().filter(|byte| **byte == b'"').count(), 2);
                }
            }
        }

        #[test]
        fn every_tag_of_a_list_is_found(list in prop::collection::vec(TAG, 1..6), space in "[ ,\t]{0,3}") {
            let joined = list.join(&format!("{space},{space}"));
            prop_assert_eq!(tags(joined.as_bytes()), list.iter().map(String::as_bytes).collect::<Vec<_>>());
        }
    }
}
