//! The fingerprint that tells whether two requests are the same.

use sha2::{Digest, Sha256};

/// The recipe of a fingerprint. Its number is stored. A recipe never changes its meaning; a new one gets a
/// new number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recipe {
    /// Covers the canonical JSON body (RFC 8785): the order of members and white space don't matter.
    CanonicalJson = 1,
    /// Covers the body's bytes as sent.
    RawBody = 2,
}

impl Recipe {
    fn of_version(version: i16) -> Option<Self> {
        [Self::CanonicalJson, Self::RawBody].into_iter().find(|recipe| *recipe as i16 == version)
    }
}

/// The parts of a request that its fingerprint covers. None of them comes from the server.
#[derive(Clone, Debug)]
pub struct RequestContent {
    /// `POST`, `PATCH`, …
    pub method: String,
    /// Concrete path in its one spelling: a key that captured one charge can't stand for capturing another.
    pub path: String,
    /// The path as sent, if that is another spelling. Earlier releases stored it, and its fingerprint.
    pub path_as_sent: Option<String>,
    /// Query as sent. The order of its parameters doesn't matter.
    pub query: String,
    /// The body as canonical JSON.
    pub body: Vec<u8>,
    /// The body as sent.
    pub raw_body: Vec<u8>,
}

impl RequestContent {
    /// The spellings under which the path may have been stored.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.path.as_str()).chain(self.path_as_sent.as_deref())
    }
}

/// SHA-256 over method, path, query and body. It's stored with the key, to detect a key that comes back with
/// another request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fingerprint {
    /// Number of the recipe. A stored fingerprint is compared by its own recipe, so that neither a new
    /// release nor a changed policy refuses the retries of earlier requests.
    pub version: i16,
    /// The 32 bytes.
    pub sha256: Vec<u8>,
}

impl Fingerprint {
    /// Computes the fingerprint of a request by `recipe`.
    pub fn of(recipe: Recipe, request: &RequestContent) -> Self {
        Self::with_path(recipe, request, &request.path)
    }

    fn with_path(recipe: Recipe, request: &RequestContent, path: &str) -> Self {
        let mut parameters: Vec<&str> = request.query.split('&').filter(|p| !p.is_empty()).collect();
        parameters.sort_unstable();
        let body = match recipe {
            Recipe::CanonicalJson => &request.body,
            Recipe::RawBody => &request.raw_body,
        };
        let version = recipe as i16;
        let mut hash = Sha256::new();
        hash.update(version.to_be_bytes());
        for part in [request.method.as_bytes(), path.as_bytes(), parameters.join("&").as_bytes(), body] {
            // With its length before it, no part can pose as the end of the one before.
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        Self { version, sha256: hash.finalize().to_vec() }
    }

    /// Whether this is the fingerprint of `request`; `None` if this release doesn't know the recipe.
    pub fn is_of(&self, request: &RequestContent) -> Option<bool> {
        let recipe = Recipe::of_version(self.version)?;
        Some(request.paths().any(|path| Self::with_path(recipe, request, path) == *self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: &str, path: &str, query: &str, body: &str) -> RequestContent {
        let canonical = crate::web::fields::parse_json(body.as_bytes())
            .map_or(body.as_bytes().to_vec(), |value| serde_json_canonicalizer::to_vec(&value).unwrap());
        RequestContent {
            method: method.to_owned(),
            path: path.to_owned(),
            path_as_sent: None,
            query: query.to_owned(),
            body: canonical,
            raw_body: body.as_bytes().to_vec(),
        }
    }

    fn of_json(body: &str) -> Fingerprint {
        Fingerprint::of(Recipe::CanonicalJson, &request("POST", "/v1/charges", "", body))
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
    fn of_raw_bodies_every_byte_matters() {
        let of = |body| Fingerprint::of(Recipe::RawBody, &request("POST", "/", "", body));
        assert_eq!(of(r#"{"a":1}"#), of(r#"{"a":1}"#));
        assert_ne!(of(r#"{"a":1}"#), of(r#"{"a": 1}"#));
    }

    #[test]
    fn method_path_and_query_take_part_and_the_order_of_parameters_does_not() {
        let of = |method, path, query, body| {
            Fingerprint::of(Recipe::CanonicalJson, &request(method, path, query, body))
        };
        let base = of("POST", "/v1/charges/a/capture", "x=1&y=2", "{}");
        assert_eq!(base, of("POST", "/v1/charges/a/capture", "y=2&x=1", "{}"));
        assert_ne!(base, of("PATCH", "/v1/charges/a/capture", "x=1&y=2", "{}"));
        assert_ne!(base, of("POST", "/v1/charges/b/capture", "x=1&y=2", "{}"));
        assert_ne!(base, of("POST", "/v1/charges/a/capture", "x=1", "{}"));
        assert_ne!(base, of("POST", "/v1/charges/a/capture", "x=1&y=2", ""));
    }

    #[test]
    fn a_fingerprint_of_the_path_as_sent_is_recognized() {
        let stored = Fingerprint::of(Recipe::CanonicalJson, &request("POST", "/v1/%63harges", "", "{}"));
        let path_as_sent = Some("/v1/%63harges".to_owned());
        let now = RequestContent { path_as_sent, ..request("POST", "/v1/charges", "", "{}") };
        assert_eq!(stored.is_of(&now), Some(true));
        assert_eq!(Fingerprint::of(Recipe::CanonicalJson, &now).is_of(&now), Some(true));
        assert_ne!(Fingerprint::of(Recipe::CanonicalJson, &now), stored);
    }

    #[test]
    fn parts_cannot_shift_into_each_other() {
        let of = |path, body| Fingerprint::of(Recipe::RawBody, &request("POST", path, "", body));
        assert_ne!(of("/ab", "c"), of("/a", "bc"));
    }

    #[test]
    fn a_fingerprint_is_compared_by_its_own_recipe() {
        let sent = request("POST", "/", "", r#"{"a": 1}"#);
        let respaced = request("POST", "/", "", r#"{"a":1}"#);
        for (recipe, same) in [(Recipe::CanonicalJson, true), (Recipe::RawBody, false)] {
            let stored = Fingerprint::of(recipe, &sent);
            assert_eq!(stored.is_of(&sent), Some(true));
            assert_eq!(stored.is_of(&respaced), Some(same));
        }
        let unknown = Fingerprint { version: 99, ..of_json("{}") };
        assert_eq!(unknown.is_of(&sent), None);
    }
}

#[cfg(test)]
mod properties {
    use proptest::prelude::*;
    use serde_json::{Map, Value};

    use crate::base::json;

    fn canonical(value: &Value) -> Vec<u8> {
        serde_json_canonicalizer::to_vec(value).unwrap()
    }

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            (-1e12..1e12).prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 24, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::vec((any::<String>(), inner), 0..6)
                    .prop_map(|members| Value::from(members.into_iter().collect::<Map<_, _>>())),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_body_has_one_canonical_form(value in values()) {
            let once = canonical(&value);
            let again = json::parse(&once).unwrap();
            prop_assert_eq!(canonical(&again), &once[..]);
            let spaced = serde_json::to_vec_pretty(&value).unwrap();
            prop_assert_eq!(canonical(&json::parse(&spaced).unwrap()), once);
        }

        #[test]
        fn bodies_that_differ_differ_in_their_canonical_forms(one in values(), other in values()) {
            let (first, second) = (json::parse(&canonical(&one)), json::parse(&canonical(&other)));
            prop_assert_eq!(canonical(&one) == canonical(&other), first == second);
        }

        #[test]
        fn any_bytes_are_json_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let serde = serde_json::from_slice::<Value>(&bytes);
            match json::parse(&bytes) {
                Ok(value) => prop_assert_eq!(Some(value), serde.ok()),
                Err(_) => prop_assert!(true),
            }
        }

        #[test]
        fn what_looks_like_json_is_read_as_such_or_has_repeated_names(text in r#"[{}\[\],:"a-b0-9.eE+\\u -]{0,40}"#) {
            match (json::parse(text.as_bytes()), serde_json::from_str::<Value>(&text)) {
                (Ok(ours), Ok(theirs)) => prop_assert_eq!(ours, theirs),
                (Err(reason), Ok(_)) => prop_assert!(reason.contains("repeats"), "{}", reason),
                (Ok(_), Err(error)) => prop_assert!(false, "{}", error),
                (Err(_), Err(_)) => {}
            }
        }
    }
}
