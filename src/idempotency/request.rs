//! A mutating request, read at the door.

use std::borrow::Cow;
use std::time::Duration;

use actix_web::dev::Payload;
use actix_web::http::Method;
use actix_web::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use actix_web::{FromRequest, HttpRequest};
use futures_util::StreamExt;
use futures_util::future::LocalBoxFuture;
use percent_encoding::percent_decode_str;
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::auth::{AuthenticatedMerchant, AuthenticatedOperator};
use crate::error::Error;
use crate::fields::{Fields, parse_json};
use crate::ids::MerchantId;
use crate::request::RequestId;

use super::{Fingerprint, IdempotencyKey};

/// Most bytes of a body.
pub const BODY_BYTES_MAX: usize = 64 * 1024;

/// Longest wait for a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Something that a mutating request asks for.
pub trait Operation: Sized + Send + Sync + 'static {
    /// Its name, such as `charges.create`: in the stored row, metrics and logs.
    const NAME: &'static str;

    /// Who may ask for it.
    const CALLER: Caller = Caller::Merchant;

    /// Whether an empty body stands for `{}`.
    const BODY_OPTIONAL: bool = false;

    /// Reads it from a request. Errors go to the input's fields; `None` if there were any. Depends on
    /// nothing but the input, so that a stored request can be read again without its client.
    fn read(input: &mut Input<'_, '_>) -> Option<Self>;

    /// The resource that it makes or changes. It's stored with the first claim, and every later attempt
    /// gets that one.
    fn resource(&self) -> Resource;
}

/// Who may ask for an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// A merchant. Idempotency keys are unique per merchant.
    Merchant,
    /// An operator. All operators share one space of idempotency keys, under the nil merchant.
    Operator,
}

/// What an operation is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// Nothing that has an id.
    None,
    /// A resource of this type that will be made; the claim allocates its id.
    New(&'static str),
    /// The resource of this type and id.
    Existing(&'static str, Uuid),
}

impl Resource {
    /// The resource of this type that the path names; [`Resource::None`] if what the path holds is no id.
    pub fn named(kind: &'static str, id: Option<Uuid>) -> Self {
        id.map_or(Self::None, |id| Self::Existing(kind, id))
    }
}

/// What an operation is read from.
pub struct Input<'a, 'b> {
    /// Concrete path of the request.
    pub path: &'a str,
    /// Members of the body.
    pub fields: &'a mut Fields<'b>,
}

impl Input<'_, '_> {
    /// The `n`-th segment of the path, counted from 0 and percent-decoded: in `/v1/charges/ch_1`, 2 is
    /// `ch_1`.
    pub fn segment(&self, n: usize) -> Cow<'_, str> {
        let segment = self.path.split('/').skip(1).nth(n).unwrap_or_default();
        percent_decode_str(segment).decode_utf8_lossy()
    }
}

/// Who asks, under which key, and exactly what: everything about a request but its parsed operation.
#[derive(Clone, Debug)]
pub struct Envelope {
    /// The authenticated merchant.
    pub merchant: MerchantId,
    /// The key.
    pub key: IdempotencyKey,
    /// What the key must not be reused for anything else than.
    pub fingerprint: Fingerprint,
    /// Of this attempt.
    pub request_id: String,
    /// `POST`, `PATCH`, …
    pub method: String,
    /// Concrete path.
    pub path: String,
    /// As sent.
    pub query: String,
    /// Canonical JSON.
    pub body: Vec<u8>,
}

/// Extractor for a mutating request: the only way for a handler to get its body.
///
/// Errors, in the order checked: authentication, `body_too_large`, `media_type_unsupported`,
/// `idempotency_key_missing`, `idempotency_key_invalid`, `json_malformed`, `validation_failed`. None of
/// them is kept, since the operation never began.
pub struct IdempotentRequest<O> {
    /// Who and under which key.
    pub(super) envelope: Envelope,
    /// What.
    pub(super) operation: O,
}

impl<O: Operation> FromRequest for IdempotentRequest<O> {
    type Error = Error;
    type Future = LocalBoxFuture<'static, Result<Self, Error>>;

    fn from_request(req: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let req = req.clone();
        let payload = payload.take();
        Box::pin(async move {
            let merchant = match O::CALLER {
                Caller::Merchant => AuthenticatedMerchant::of(&req).await?.0,
                Caller::Operator => AuthenticatedOperator::of(&req).await.map(|_| MerchantId(Uuid::nil()))?,
            };
            let body = tokio::time::timeout(BODY_TIMEOUT, read_body(&req, payload))
                .await
                .map_err(|_| Error::BodyTimeout { limit_s: BODY_TIMEOUT.as_secs() })??;
            let is_empty = O::BODY_OPTIONAL && body.is_empty();
            if !is_empty {
                check_media_type(&req)?;
            }
            let key = IdempotencyKey::from_headers(req.headers())?;
            let value = if is_empty { Value::Object(Map::new()) } else { parse_json(&body)? };
            let operation = read_operation(req.path(), &value)?;
            let canonical = serde_json_canonicalizer::to_vec(&value).map_err(Error::internal)?;
            Ok(Self {
                envelope: Envelope {
                    merchant,
                    key,
                    fingerprint: Fingerprint::of(
                        req.method().as_str(),
                        req.path(),
                        req.query_string(),
                        &canonical,
                    ),
                    request_id: RequestId::from_request(&req).0,
                    method: req.method().to_string(),
                    path: req.path().to_owned(),
                    query: req.query_string().to_owned(),
                    body: canonical,
                },
                operation,
            })
        })
    }
}

fn read_operation<O: Operation>(path: &str, body: &Value) -> Result<O, Error> {
    Fields::read(body, |fields| O::read(&mut Input { path, fields }))
}

async fn read_body(req: &HttpRequest, mut payload: Payload) -> Result<Vec<u8>, Error> {
    let too_large = Error::BodyTooLarge { limit_bytes: BODY_BYTES_MAX };
    let announced = req
        .headers()
        .get(CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse::<u64>().ok())
        .unwrap_or(0);
    if announced > BODY_BYTES_MAX as u64 {
        return Err(too_large);
    }
    let mut body = Vec::with_capacity(announced as usize);
    while let Some(chunk) = payload.next().await {
        let chunk =
            chunk.map_err(|_| Error::JsonMalformed("it ended before its announced length".to_owned()))?;
        if body.len() + chunk.len() > BODY_BYTES_MAX {
            return Err(too_large);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

fn check_media_type(req: &HttpRequest) -> Result<(), Error> {
    let patch = req.method() == Method::PATCH;
    let header = |name| req.headers().get(name).and_then(|value| value.to_str().ok());
    let essence = header(CONTENT_TYPE)
        .and_then(|value| value.split(';').next())
        .map(|essence| essence.trim().to_ascii_lowercase());
    let is_json = match essence.as_deref() {
        Some("application/json") => true,
        Some("application/merge-patch+json") => patch,
        _ => false,
    };
    let is_plain = header(CONTENT_ENCODING).is_none_or(|encoding| encoding.eq_ignore_ascii_case("identity"));
    if is_json && is_plain {
        return Ok(());
    }
    Err(Error::MediaTypeUnsupported {
        expected: if patch { "application/json or application/merge-patch+json" } else { "application/json" },
    })
}
