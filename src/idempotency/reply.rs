//! Answers in their stored form.

use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;

use crate::error::failure::Failure;

/// The headers that belong to an answer and are replayed with it. All others belong to a single exchange: a
/// stored `Date`, `Set-Cookie` or request id would be wrong the second time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeptHeader {
    /// `Content-Type`
    ContentType,
    /// `Location`
    Location,
    /// `Link`
    Link,
    /// `ETag`
    ETag,
}

impl KeptHeader {
    fn name(self) -> &'static str {
        match self {
            Self::ContentType => "Content-Type",
            Self::Location => "Location",
            Self::Link => "Link",
            Self::ETag => "ETag",
        }
    }
}

/// Placeholder for a secret in a stored body.
pub const SEALED: &str = "{sealed}";

/// Name under which a seal is stored among the headers. Never sent.
const SEAL_HEADER: &str = "Oncepay-Seal";

/// Headers and body of a reply as sent.
pub(super) type Unsealed<'a> = (Vec<(&'a str, &'a str)>, Vec<u8>);

/// A final answer, stored with the key and sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Status, 200 to 499.
    pub status: u16,
    /// Headers, all of them listed in [`KeptHeader`].
    pub headers: Vec<(String, String)>,
    /// Body as sent.
    pub body: Vec<u8>,
    /// Headers of this one exchange, which aren't stored.
    pub notes: Vec<(&'static str, String)>,
}

impl Reply {
    /// Makes a reply with `value` as JSON.
    pub fn json(status: impl Into<u16>, value: &impl Serialize) -> Result<Self, Failure> {
        Self::of(status.into(), "application/json", value)
    }

    /// Makes a reply with `problem` as problem details (RFC 9457).
    pub fn problem(status: u16, problem: &impl Serialize) -> Result<Self, Failure> {
        Self::of(status, "application/problem+json", problem)
    }

    /// Adds headers that aren't stored: a replay doesn't have them.
    pub fn with_notes(self, notes: Vec<(&'static str, String)>) -> Self {
        Self { notes, ..self }
    }

    fn of(status: u16, content_type: &str, value: &impl Serialize) -> Result<Self, Failure> {
        let body = serde_json::to_vec(value).map_err(Failure::internal)?;
        Ok(Self { status, headers: Vec::new(), body, notes: Vec::new() }
            .header(KeptHeader::ContentType, content_type))
    }

    /// Marks the body as one with the placeholder [`SEALED`] for the secret that the host
    /// [reveals](super::Host::reveal) for `seal`. The secret replaces it each time that the reply is sent,
    /// and isn't stored.
    ///
    /// It replaces the last occurrence: a client's own text, which may look the same, must come before it.
    pub fn seal(mut self, seal: impl Into<String>) -> Self {
        self.headers.push((SEAL_HEADER.to_owned(), seal.into()));
        self
    }

    /// Returns headers and body as sent. Errors: `secret_unavailable` if the host doesn't reveal the secret.
    pub(super) fn unseal(
        &self,
        reveal: impl Fn(&str) -> Option<SecretString>,
    ) -> Result<Unsealed<'_>, Failure> {
        let is_seal = |name: &str| name == SEAL_HEADER;
        let seal = self.headers.iter().find(|(name, _)| is_seal(name));
        let secret = match seal {
            Some((_, seal)) => Some(reveal(seal).ok_or(Failure::SecretUnavailable)?),
            None => None,
        };
        let headers = self
            .headers
            .iter()
            .filter(|(name, _)| !is_seal(name))
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        let body = match (secret, std::str::from_utf8(&self.body)) {
            (Some(secret), Ok(text)) => match text.rsplit_once(SEALED) {
                Some((before, after)) => [before, secret.expose_secret(), after].concat().into_bytes(),
                None => self.body.clone(),
            },
            _ => self.body.clone(),
        };
        Ok((headers, body))
    }

    /// Adds a header that isn't stored: a replay doesn't have it.
    pub fn note(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.notes.push((name, value.into()));
        self
    }

    /// Adds a header.
    pub fn header(mut self, name: KeptHeader, value: impl Into<String>) -> Self {
        self.headers.push((name.name().to_owned(), value.into()));
        self
    }
}
