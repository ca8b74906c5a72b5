//! Extraction of mutating requests from HTTP: the only file of the engine that knows actix.

use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::Payload;
use actix_web::error::PayloadError;
use actix_web::http::header::{
    CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, IF_MATCH, IF_NONE_MATCH,
};
use actix_web::http::{Method, StatusCode};
use actix_web::{FromRequest, HttpMessage, HttpRequest, HttpResponse, ResponseError, web};
use futures_util::StreamExt;
use futures_util::future::LocalBoxFuture;
use serde_json::{Map, Value};

use crate::base::ids::MerchantId;
use crate::base::json;
use crate::base::paths;
use crate::base::preconditions::Precondition;
use crate::base::scope;
use crate::base::trace::TraceContext;
use crate::error::failure::{AsFailure, Failure};
use crate::storage::admission::{Admission, Place};
use crate::storage::deadline;
use crate::storage::party::{self, Party};

use super::engine::{Engine, Response};
use super::envelope::Envelope;
use super::fingerprint::RequestContent;
use super::host::Host;
use super::key::{IDEMPOTENCY_KEY, IdempotencyKey};
use super::operation::{BatchedOperation, ErrorOf, ExternalOperation, LocalOperation, Operation};
use super::request::{IdempotentRequest, RequestRules, read};

/// Maximum size of a body in bytes.
pub const BODY_BYTES_MAX: usize = 64 * 1024;

/// Size from which a body is large, in bytes. Hardly any is.
const LARGE_BODY_BYTES: usize = 8 * 1024;

/// Maximum wait for a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

const BAD_MESSAGE_ID: &str = "must be 1 to 255 visible ASCII characters, in `webhook-id`";

/// The caller of a request.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The merchant in whose name the key is kept.
    pub merchant: MerchantId,
    /// See [`Envelope::proof`].
    pub proof: Option<Vec<u8>>,
    /// See [`Envelope::actor`].
    pub actor: Option<String>,
}

/// A host that receives requests over HTTP.
pub trait HttpHost: Host<Error: ResponseError> {
    /// Identifies the sender of `request`, by its head.
    fn identify(
        &self,
        request: &HttpRequest,
        caller: Self::Caller,
    ) -> LocalBoxFuture<'static, Result<Identity, Self::Error>>;

    /// Makes sure that the identified caller may learn what is wrong with the request.
    fn confirm(
        &self,
        request: &HttpRequest,
        caller: Self::Caller,
    ) -> LocalBoxFuture<'static, Result<(), Self::Error>>;

    /// Verifies a request that is a signed message, and returns the message's id, which is its key. `None` if
    /// the key comes in `Idempotency-Key`.
    fn verify(
        &self,
        _request: &HttpRequest,
        _caller: Self::Caller,
        _body: &[u8],
    ) -> Result<Option<String>, Self::Error> {
        Ok(None)
    }

    /// Refuses the parameters of `query` that aren't `known`, together with `error`, if the request has one
    /// already. By default, a host ignores them.
    fn check_query(
        &self,
        _query: &str,
        _known: &[&str],
        error: Option<Self::Error>,
    ) -> Result<(), Self::Error> {
        error.map_or(Ok(()), Err)
    }

    /// Receives a verified message that can't be read.
    fn note_unreadable(&self, _message_id: &str, _error: &Self::Error) {}

    /// Id of the request, for answers and the log.
    fn request_id(&self, request: &HttpRequest) -> String;
}

/// Errors, in the order checked: authentication, `body_too_large`, `body_timeout`, `body_incomplete` or `overloaded` (too
/// many large bodies), `media_type_unsupported`, `rate_limited`, `overloaded` (too many requests), `idempotency_key_missing`, `idempotency_key_invalid`, `json_malformed`, `validation_failed`. None of them
/// is stored, since the operation never began. A signature over the body authenticates a message, so for it
/// `body_too_large` comes first.
impl<O: Operation<Host: HttpHost>> FromRequest for IdempotentRequest<O> {
    type Error = ErrorOf<O>;
    type Future = LocalBoxFuture<'static, Result<Self, ErrorOf<O>>>;

    fn from_request(req: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let req = req.clone();
        let payload = payload.take();
        Box::pin(async move {
            let engine = req.app_data::<web::Data<Engine<O::Host>>>().expect("the server provides it");
            let (host, caller) = (engine.host(), O::DESCRIPTOR.caller);
            scope::with(|scope| scope.set_operation(O::DESCRIPTOR.name));
            let identity = host.identify(&req, caller).await?;
            scope::with(|scope| scope.set_merchant(identity.merchant));
            let read: Result<Self, ErrorOf<O>> = from_parts(&req, payload, engine, identity).await;
            match read {
                Ok(request) => Ok(request),
                // Whoever is refused because there is too much to do must not cause more. That an invalid key is one
                // comes out as soon as its request gets through.
                Err(error)
                    if matches!(error.failure(), Some(Failure::RateLimited { .. } | Failure::Overloaded)) =>
                {
                    Err(error)
                }
                Err(error) => {
                    // A caller without a valid key doesn't learn what else is wrong.
                    host.confirm(&req, caller).await?;
                    Err(error)
                }
            }
        })
    }
}

async fn from_parts<O: Operation<Host: HttpHost>>(
    req: &HttpRequest,
    payload: Payload,
    engine: &Engine<O::Host>,
    identity: Identity,
) -> Result<IdempotentRequest<O>, ErrorOf<O>> {
    let (host, descriptor) = (engine.host(), O::DESCRIPTOR);
    // Who sends a message isn't known before it has been verified.
    let sender = identity.proof.as_ref().map_or(Party::Strangers, |_| Party::Caller(identity.merchant));
    let body = read_body(req, payload, engine.large_bodies(), sender);
    let received = tokio::time::timeout(BODY_TIMEOUT, body).await;
    // The time that the client took to send the body doesn't count, nor does that of a client that has sent none: even
    // the answer that it was too slow takes a look at its key.
    deadline::restart(engine.request_deadline());
    let (raw_body, large_body) =
        received.map_err(|_| Failure::BodyTimeout { limit_s: BODY_TIMEOUT.as_secs() })??;
    let message_id = host.verify(req, descriptor.caller, &raw_body)?;
    let is_empty = descriptor.body_optional && raw_body.is_empty();
    if !is_empty {
        check_media_type(req)?;
    }
    let request_id = host.request_id(req);
    let policy = engine.policy(descriptor.name).await?;
    party::belongs_to(Party::Caller(identity.merchant));
    let (fields, pass) = engine.enter(descriptor.name, identity.merchant, &policy);
    if let Some(fields) = fields {
        req.extensions_mut().insert(fields);
    }
    let pass = Arc::new(pass?.with_large_body(large_body));
    let enforcement = policy.enforcement_for(identity.merchant);
    let sent = match &message_id {
        Some(id) => IdempotencyKey::bare(id).ok_or(Failure::IdempotencyKeyInvalid(BAD_MESSAGE_ID)),
        None => {
            IdempotencyKey::from_headers(req.headers().get_all(IDEMPOTENCY_KEY).map(|value| value.as_bytes()))
        }
    };
    let key = engine.admit(descriptor.name, sent, enforcement, &request_id)?;
    let is_keyed = key.is_some();
    let path = paths::normalized(req.path());
    let parse = || {
        let value = match is_empty {
            true => Value::Object(Map::new()),
            false => json::parse(&raw_body).map_err(Failure::JsonMalformed)?,
        };
        Ok((read::<O>(&path, req.query_string(), &value, host)?, value))
    };
    let parsed = parse();
    let check = |error| host.check_query(req.query_string(), descriptor.query_parameters, error);
    let checked = match parsed {
        Ok(parsed) => check(None).map(|()| parsed),
        Err(error) => Err(check(Some(error)).expect_err("it is handed an error")),
    };
    let (operation, value) = checked.inspect_err(|error: &ErrorOf<O>| {
        if let Some(message_id) = &message_id {
            host.note_unreadable(message_id, error);
        }
    })?;
    let body = serde_json_canonicalizer::to_vec(&value).map_err(Failure::internal)?;
    let longest = Duration::from_secs(policy.wait_max_seconds.into());
    let wait = preferred_wait(req.headers()).map(|wait| wait.min(longest)).filter(|wait| !wait.is_zero());
    let Identity { merchant, proof, actor } = identity;
    let trace = scope::with(|scope| scope.trace().clone()).unwrap_or_else(TraceContext::begin);
    let request = IdempotentRequest {
        envelope: Arc::new(Envelope {
            merchant,
            key: key.unwrap_or_else(IdempotencyKey::unkeyed),
            request_id,
            trace,
            content: RequestContent {
                method: req.method().to_string(),
                path_as_sent: (path != req.path()).then(|| req.path().to_owned()),
                path: path.into_owned(),
                query: req.query_string().to_owned(),
                body,
                raw_body,
            },
            proof,
            actor,
            message_id,
        }),
        operation: Arc::new(operation),
        treatment: RequestRules { policy, enforcement, wait, precondition: precondition(req.headers()) },
        calls_processor: true,
        progress: Arc::default(),
        pass,
    };
    let request = if is_keyed { request } else { request.unkeyed() };
    scope::with(|scope| scope.set_key(Arc::clone(&request.envelope) as _));
    Ok(request)
}

impl<H: HttpHost> Engine<H> {
    /// Runs [`execute_local`](Self::execute_local) and returns an HTTP response.
    pub async fn run_local<O: LocalOperation<Host = H>>(
        &self,
        request: IdempotentRequest<O>,
    ) -> Result<HttpResponse, H::Error> {
        self.execute_local(request).await.map(into_http)
    }

    /// Runs [`execute_external`](Self::execute_external) and returns an HTTP response.
    pub async fn run_external<O: ExternalOperation<Host = H>>(
        &self,
        request: IdempotentRequest<O>,
    ) -> Result<HttpResponse, H::Error> {
        self.execute_external(request).await.map(into_http)
    }

    /// Runs [`execute_batched`](Self::execute_batched) and returns an HTTP response.
    pub async fn run_batched<O: BatchedOperation<Host = H>>(
        &self,
        request: IdempotentRequest<O>,
    ) -> Result<HttpResponse, H::Error> {
        self.execute_batched(request).await.map(into_http)
    }
}

fn into_http(response: Response) -> HttpResponse {
    let status = StatusCode::from_u16(response.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut built = HttpResponse::build(status);
    for (name, value) in response.headers {
        built.insert_header((name, value));
    }
    built.body(response.body)
}

/// Evaluates the conditions of a request that changes something. Nothing that it could change has an entity tag.
fn precondition(headers: &HeaderMap) -> Precondition {
    let values = |name| headers.get_all(name).map(|value| value.as_bytes());
    Precondition::of(values(IF_MATCH), values(IF_NONE_MATCH), None)
}

/// The `wait` preference of RFC 7240, section 4.3. Ignores what it can't parse, as section 2 demands.
fn preferred_wait(headers: &HeaderMap) -> Option<Duration> {
    headers
        .get_all("prefer")
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .find_map(|preference| {
            let (name, value) = preference.split(';').next()?.split_once('=')?;
            // The first occurrence counts, even if it is invalid.
            let value = value.trim().trim_matches('"');
            let is_number = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
            // A larger number is more than any policy grants.
            let seconds = is_number.then(|| value.parse().unwrap_or(u32::MAX));
            name.trim().eq_ignore_ascii_case("wait").then_some(seconds)
        })
        .flatten()
        .map(|seconds| Duration::from_secs(seconds.into()))
}

/// Receives the body from `sender`. A large one comes with a place, which the request keeps.
async fn read_body(
    req: &HttpRequest,
    mut payload: Payload,
    places: &Arc<Admission>,
    sender: Party,
) -> Result<(Vec<u8>, Option<Place>), Failure> {
    let too_large = Failure::BodyTooLarge { limit_bytes: BODY_BYTES_MAX };
    let announced = req
        .headers()
        .get(CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse::<u64>().ok())
        .unwrap_or(0);
    let announced = usize::try_from(announced).unwrap_or(usize::MAX);
    if announced > BODY_BYTES_MAX {
        return Err(too_large);
    }
    let (mut body, mut place) = (Vec::with_capacity(announced.min(LARGE_BODY_BYTES)), None);
    while let Some(chunk) = payload.next().await {
        let chunk = chunk.map_err(|error| match error {
            PayloadError::EncodingCorrupted => Failure::BodyIncomplete("has malformed chunks"),
            _ => Failure::BodyIncomplete("ended before its announced length"),
        })?;
        if body.len() + chunk.len() > BODY_BYTES_MAX {
            return Err(too_large);
        }
        if place.is_none() && body.len() + chunk.len() > LARGE_BODY_BYTES {
            place = Some(places.enter(sender)?);
        }
        body.extend_from_slice(&chunk);
    }
    Ok((body, place))
}

fn check_media_type(req: &HttpRequest) -> Result<(), Failure> {
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
    Err(Failure::MediaTypeUnsupported {
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
