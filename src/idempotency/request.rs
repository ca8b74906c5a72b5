//! A mutating request, read at the door.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::Payload;
use actix_web::http::Method;
use actix_web::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap};
use actix_web::{FromRequest, HttpRequest, web};
use futures_util::StreamExt;
use futures_util::future::LocalBoxFuture;
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::base::ids::MerchantId;
use crate::base::paths;
use crate::base::signature::{self, Secret, Signed};
use crate::base::time;
use crate::error::Error;
use crate::storage::deadline;
use crate::web::auth::{AuthenticatedMerchant, AuthenticatedOperator, PresentedKey};
use crate::web::fields::{Fields, parse_json};
use crate::web::request_id::RequestId;

use super::IdempotencyKey;
use super::engine::Engine;
use super::fingerprint::RequestContent;
use super::policy::{Enforcement, Policy};

/// Most bytes of a body.
pub const BODY_BYTES_MAX: usize = 64 * 1024;

const BAD_EVENT_ID: &str = "must be 1 to 255 visible ASCII characters, in `webhook-id`";

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

    /// How it treats its keys until an operator says otherwise.
    fn policy() -> Policy {
        Policy::default()
    }

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
    /// The acquirer, by a signature (Standard Webhooks). Its message ids are the keys, in a space of their own.
    Acquirer,
}

/// In whose name operators' keys are kept.
pub const OPERATORS: MerchantId = MerchantId(Uuid::nil());

/// In whose name the ids of the acquirer's messages are kept.
pub const ACQUIRER: MerchantId = MerchantId(Uuid::max());

/// What the acquirer signs with: any of these. Several, while it changes over from one to the next.
#[derive(Debug, Default)]
pub struct AcquirerSecrets(pub Vec<Secret>);

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
    /// Whether messages may be sent to the service's own host.
    pub allows_loopback: bool,
}

impl Input<'_, '_> {
    /// A segment of the path (see [`path_segment`]).
    pub fn segment(&self, n: usize) -> Cow<'_, str> {
        paths::segment(self.path, n)
    }
}

/// Who asks, under which key, and exactly what: everything about a request but its parsed operation.
#[derive(Clone, Debug)]
pub struct Envelope {
    /// The authenticated merchant; [`OPERATORS`] or [`ACQUIRER`] where it is none.
    pub merchant: MerchantId,
    /// The key.
    pub key: IdempotencyKey,
    /// Of this attempt.
    pub request_id: String,
    /// What the key must not be reused for anything else than.
    pub content: RequestContent,
    /// SHA-256 of the merchant's API key, which is yet to be found valid: see [`PresentedKey`]. `None` where somebody
    /// else asks, who is authenticated already or needn't be.
    pub proof: Option<Vec<u8>>,
    /// Which operator asks, if one does.
    pub actor: Option<String>,
    /// Id of the message, if it's one of the acquirer.
    pub event_id: Option<String>,
}

/// How a request is to be treated.
#[derive(Clone, Debug)]
pub(super) struct Treatment {
    /// Of its operation.
    pub policy: Arc<Policy>,
    /// Whether keys have effect for it.
    pub enforcement: Enforcement,
    /// How long it's ready to wait for another's answer: what the client asked for, at most what the policy
    /// allows.
    pub wait: Option<Duration>,
}

/// Extractor for a mutating request: the only way for a handler to get its body.
///
/// Errors, in the order checked: authentication, `body_too_large`, `media_type_unsupported`,
/// `idempotency_key_missing`, `idempotency_key_invalid`, `json_malformed`, `validation_failed`. None of
/// them is kept, since the operation never began. What authenticates the acquirer is a signature over the body, so for it
/// `body_too_large` comes first.
pub struct IdempotentRequest<O> {
    /// Who and under which key.
    pub(super) envelope: Arc<Envelope>,
    /// What.
    pub(super) operation: Arc<O>,
    /// How.
    pub(super) treatment: Treatment,
}

impl<O: Operation> FromRequest for IdempotentRequest<O> {
    type Error = Error;
    type Future = LocalBoxFuture<'static, Result<Self, Error>>;

    fn from_request(req: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let req = req.clone();
        let payload = payload.take();
        Box::pin(async move {
            let (merchant, proof, actor) = match O::CALLER {
                Caller::Merchant => {
                    let key = PresentedKey::of(&req).await?;
                    (key.merchant, Some(key.sha256), None)
                }
                Caller::Operator => (OPERATORS, None, Some(AuthenticatedOperator::of(&req).await?.name)),
                Caller::Acquirer => (ACQUIRER, None, None),
            };
            match Self::read(&req, payload, merchant, proof, actor).await {
                Ok(request) => Ok(request),
                Err(error) => {
                    // Whoever has no valid key any more isn't told what else is wrong.
                    if O::CALLER == Caller::Merchant {
                        AuthenticatedMerchant::of(&req).await?;
                    }
                    Err(error)
                }
            }
        })
    }
}

impl<O: Operation> IdempotentRequest<O> {
    async fn read(
        req: &HttpRequest,
        payload: Payload,
        merchant: MerchantId,
        proof: Option<Vec<u8>>,
        actor: Option<String>,
    ) -> Result<Self, Error> {
        let engine = req.app_data::<web::Data<Engine>>().expect("the server provides it");
        let raw_body = tokio::time::timeout(BODY_TIMEOUT, read_body(req, payload))
            .await
            .map_err(|_| Error::BodyTimeout { limit_s: BODY_TIMEOUT.as_secs() })??;
        // What the client took to send it was the client's time.
        deadline::restart(engine.request_deadline());
        let is_signed = O::CALLER == Caller::Acquirer;
        if is_signed {
            check_signature(req, &raw_body, engine)?;
        }
        let is_empty = O::BODY_OPTIONAL && raw_body.is_empty();
        if !is_empty {
            check_media_type(req)?;
        }
        let request_id = RequestId::from_request(req).0;
        let policy = engine.policy(O::NAME).await?;
        let enforcement = policy.enforcement_for(merchant);
        let event_id = is_signed.then(|| only_header(req, signature::ID).to_owned());
        let sent = match &event_id {
            Some(id) => IdempotencyKey::bare(id).ok_or(Error::IdempotencyKeyInvalid(BAD_EVENT_ID)),
            None => IdempotencyKey::from_headers(req.headers()),
        };
        let key = engine.admit::<O>(sent, enforcement, &request_id)?;
        let is_keyed = key.is_some();
        let read = || {
            let value = if is_empty { Value::Object(Map::new()) } else { parse_json(&raw_body)? };
            Ok((read_operation(req.path(), &value, engine.allows_loopback())?, value))
        };
        let (operation, value) = read().inspect_err(|error: &Error| {
            if let Some(event_id) = &event_id {
                engine.host_metrics().webhooks_refused.with_label_values(&["unreadable"]).inc();
                log::error!(event_id = event_id.as_str(); "an event of the acquirer can't be read: {}", error.detailed());
            }
        })?;
        let body = serde_json_canonicalizer::to_vec(&value).map_err(Error::internal)?;
        let longest = Duration::from_secs(policy.wait_max_seconds.into());
        let wait = preferred_wait(req.headers()).map(|wait| wait.min(longest)).filter(|wait| !wait.is_zero());
        let request = Self {
            envelope: Arc::new(Envelope {
                merchant,
                key: key.unwrap_or_else(IdempotencyKey::unkeyed),
                request_id,
                content: RequestContent {
                    method: req.method().to_string(),
                    path: req.path().to_owned(),
                    query: req.query_string().to_owned(),
                    body,
                    raw_body,
                },
                proof,
                actor,
                event_id,
            }),
            operation: Arc::new(operation),
            treatment: Treatment { policy, enforcement, wait },
        };
        Ok(if is_keyed { request } else { request.unkeyed() })
    }

    /// Reads a stored request again. Fails if this release wouldn't take it.
    pub(super) fn restore(
        envelope: Envelope,
        treatment: Treatment,
        allows_loopback: bool,
    ) -> Result<Self, Error> {
        let value = parse_json(&envelope.content.body)?;
        let operation = read_operation(&envelope.content.path, &value, allows_loopback)?;
        Ok(Self { envelope: Arc::new(envelope), operation: Arc::new(operation), treatment })
    }

    /// The same without its key: to be executed, whatever was executed under that.
    pub(super) fn unkeyed(mut self) -> Self {
        Arc::make_mut(&mut self.envelope).key = IdempotencyKey::unkeyed();
        self.treatment.enforcement = Enforcement::Off;
        // Nobody will ask for it again.
        let policy = Arc::make_mut(&mut self.treatment.policy);
        (policy.ttl_seconds, policy.tombstone_seconds) = (60, 0);
        self
    }
}

impl<O> Clone for IdempotentRequest<O> {
    fn clone(&self) -> Self {
        Self {
            envelope: Arc::clone(&self.envelope),
            operation: Arc::clone(&self.operation),
            treatment: self.treatment.clone(),
        }
    }
}

/// The `wait` preference of RFC 7240, section 4.3. What can't be understood is ignored, as section 2 demands.
fn preferred_wait(headers: &HeaderMap) -> Option<Duration> {
    headers
        .get_all("prefer")
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .find_map(|preference| {
            let (name, value) = preference.split(';').next()?.split_once('=')?;
            // The first occurrence counts, even if it makes no sense.
            let value = value.trim().trim_matches('"');
            let is_number = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
            // More than fits is more than is ever granted.
            let seconds = is_number.then(|| value.parse().unwrap_or(u32::MAX));
            name.trim().eq_ignore_ascii_case("wait").then_some(seconds)
        })
        .flatten()
        .map(|seconds| Duration::from_secs(seconds.into()))
}

fn read_operation<O: Operation>(path: &str, body: &Value, allows_loopback: bool) -> Result<O, Error> {
    Fields::read(body, |fields| O::read(&mut Input { path, fields, allows_loopback }))
}

async fn read_body(req: &HttpRequest, mut payload: Payload) -> Result<Vec<u8>, Error> {
    let too_large = Error::BodyTooLarge { limit_bytes: BODY_BYTES_MAX };
    let announced = req
        .headers()
        .get(CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse::<u64>().ok())
        .unwrap_or(0);
    let announced = usize::try_from(announced).unwrap_or(usize::MAX);
    if announced > BODY_BYTES_MAX {
        return Err(too_large);
    }
    let mut body = Vec::with_capacity(announced);
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

/// Refuses what the acquirer hasn't signed.
fn check_signature(req: &HttpRequest, body: &[u8], engine: &Engine) -> Result<(), Error> {
    let secrets = req.app_data::<web::Data<AcquirerSecrets>>().expect("the server provides them");
    let signed = Signed {
        id: only_header(req, signature::ID),
        timestamp: only_header(req, signature::TIMESTAMP),
        signature: only_header(req, signature::SIGNATURE),
    };
    signature::verify(&secrets.0, signed, body, time::now()).map_err(|refusal| {
        engine.host_metrics().webhooks_refused.with_label_values(&[refusal.as_str()]).inc();
        Error::WebhookSignatureInvalid(refusal)
    })
}

/// A header that is sent once, or nothing.
fn only_header<'a>(req: &'a HttpRequest, name: &str) -> &'a str {
    let mut values = req.headers().get_all(name);
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().unwrap_or_default(),
        _ => "",
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use actix_web::http::header::{HeaderName, HeaderValue};

    fn wait_of(values: &[&str]) -> Option<u64> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(HeaderName::from_static("prefer"), HeaderValue::from_str(value).unwrap());
        }
        preferred_wait(&headers).map(|wait| wait.as_secs())
    }

    #[test]
    fn the_preference_to_wait_is_found_among_others() {
        for values in [
            &["wait=7"][..],
            &["Wait = 7"],
            &["wait=\"7\""],
            &["respond-async, wait=7"],
            &["respond-async", "wait=7"],
            &["return=minimal; a=b, wait=7; c"],
            &["wait=7, wait=9"],
        ] {
            assert_eq!(wait_of(values), Some(7), "{values:?}");
        }
    }

    #[test]
    fn a_preference_that_makes_no_sense_is_ignored() {
        for value in ["", "wait", "wait=", "wait=soon", "wait=-1", "wait=1.5", "await=7"] {
            assert_eq!(wait_of(&[value]), None, "{value:?}");
        }
        assert_eq!(wait_of(&["wait=soon, wait=7"]), None);
        assert_eq!(wait_of(&["wait=99999999999"]), Some(u32::MAX.into()), "is clamped later");
    }
}
