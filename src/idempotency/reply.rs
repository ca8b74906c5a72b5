//! Answers in the form in which they are kept.

use actix_web::http::StatusCode;
use serde::Serialize;

use crate::error::{Error, Problem};

/// The headers that belong to an answer and are replayed with it. All others belong to a single
/// exchange: a stored `Date`, `Set-Cookie` or request id would be wrong the second time.
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

/// A final answer: what is stored with the key, and sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// 200 to 499.
    pub status: StatusCode,
    /// Only what [`KeptHeader`] lists.
    pub headers: Vec<(String, String)>,
    /// As it goes over the wire.
    pub body: Vec<u8>,
}

impl Reply {
    /// `value` as JSON.
    pub fn json(status: StatusCode, value: &impl Serialize) -> Result<Self, Error> {
        Self::of(status, "application/json", value)
    }

    /// The problem that `error` is, in answer to request `request_id` for `path`.
    pub fn problem(error: &Error, request_id: &str, path: &str) -> Result<Self, Error> {
        Self::of(error.code().status(), "application/problem+json", &Problem::new(error, request_id, path))
    }

    fn of(status: StatusCode, content_type: &str, value: &impl Serialize) -> Result<Self, Error> {
        let body = serde_json::to_vec(value).map_err(Error::internal)?;
        Ok(Self { status, headers: Vec::new(), body }.header(KeptHeader::ContentType, content_type))
    }

    /// Adds a header.
    pub fn header(mut self, name: KeptHeader, value: impl Into<String>) -> Self {
        self.headers.push((name.name().to_owned(), value.into()));
        self
    }
}
