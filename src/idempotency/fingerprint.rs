//! What makes two requests the same request.

use sha2::{Digest, Sha256};

/// SHA-256 over method, path, query and body. Kept with the key, so that a key that comes back with
/// another request is noticed.
///
/// The concrete path is part of it: a key that captured one charge can't stand for capturing another.
/// The body goes in as canonical JSON (RFC 8785), so the order of members and white space don't matter,
/// while every value does. Nothing that the server makes up takes part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fingerprint {
    /// Which recipe made it. A stored fingerprint is compared by its own recipe, so that a new release
    /// with a new recipe doesn't refuse the retries of requests from before.
    pub version: i16,
    /// The 32 bytes.
    pub sha256: Vec<u8>,
}

impl Fingerprint {
    /// The recipe for new keys.
    pub const CURRENT_VERSION: i16 = 1;

    /// Of a request whose body is `canonical_body` (empty when there is none), by the current recipe.
    pub fn of(method: &str, path: &str, query: &str, canonical_body: &[u8]) -> Self {
        Self::by_version(Self::CURRENT_VERSION, method, path, query, canonical_body)
            .expect("the current recipe exists")
    }

    /// The same by the recipe `version`; `None` if this release doesn't know it.
    pub fn by_version(
        version: i16,
        method: &str,
        path: &str,
        query: &str,
        canonical_body: &[u8],
    ) -> Option<Self> {
        if version != 1 {
            return None;
        }
        let mut parameters: Vec<&str> = query.split('&').filter(|p| !p.is_empty()).collect();
        parameters.sort_unstable();
        let mut hash = Sha256::new();
        hash.update(version.to_be_bytes());
        for part in [method.as_bytes(), path.as_bytes(), parameters.join("&").as_bytes(), canonical_body] {
            // With its length before it, no part can pose as the end of the one before.
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        Some(Self { version, sha256: hash.finalize().to_vec() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_json(body: &str) -> Fingerprint {
        let value = crate::fields::parse_json(body.as_bytes()).unwrap();
        let canonical = serde_json_canonicalizer::to_vec(&value).unwrap();
        Fingerprint::of("POST", "/v1/charges", "", &canonical)
    }

    #[test]
    fn order_and_white_space_do_not_matter_and_values_do() {
        let first = of_json(r#"{"amount":"1.00","metadata":{"a":"1","b":"2"}}"#);
        assert_eq!(first, of_json(r#" { "metadata" : {"b":"2", "a":"1"}, "amount":"1.00" } "#));
        assert_eq!(first, of_json(r#"{"\u0061mount":"1.00","metadata":{"a":"1","b":"2"}}"#));
        for other in [
            r#"{"amount":"1.0","metadata":{"a":"1","b":"2"}}"#,
            r#"{"amount":"1.00","metadata":{"a":"1","b":null}}"#,
            r#"{"amount":"1.00","metadata":{"a":"1"}}"#,
            r#"{"amount":1.00,"metadata":{"a":"1","b":"2"}}"#,
        ] {
            assert_ne!(first, of_json(other), "{other}");
        }
    }

    #[test]
    fn method_path_and_query_take_part_and_the_order_of_parameters_does_not() {
        let base = Fingerprint::of("POST", "/v1/charges/a/capture", "x=1&y=2", b"{}");
        assert_eq!(base, Fingerprint::of("POST", "/v1/charges/a/capture", "y=2&x=1", b"{}"));
        assert_ne!(base, Fingerprint::of("PATCH", "/v1/charges/a/capture", "x=1&y=2", b"{}"));
        assert_ne!(base, Fingerprint::of("POST", "/v1/charges/b/capture", "x=1&y=2", b"{}"));
        assert_ne!(base, Fingerprint::of("POST", "/v1/charges/a/capture", "x=1", b"{}"));
        assert_ne!(base, Fingerprint::of("POST", "/v1/charges/a/capture", "x=1&y=2", b""));
    }

    #[test]
    fn parts_cannot_shift_into_each_other() {
        assert_ne!(Fingerprint::of("POST", "/ab", "", b"c"), Fingerprint::of("POST", "/a", "", b"bc"));
    }

    #[test]
    fn an_unknown_recipe_is_noticed() {
        assert_eq!(Fingerprint::by_version(2, "POST", "/", "", b""), None);
    }
}
