//! The callers of operations.

use std::sync::Arc;

use actix_web::HttpRequest;
use futures_util::future::LocalBoxFuture;
use uuid::Uuid;

use crate::base::ids::MerchantId;
use crate::base::time;
use crate::error::Error;
use crate::idempotency::{HttpHost, Identity};
use crate::web::auth::{AuthenticatedMerchant, AuthenticatedOperator, OPERATORS, PresentedKey};
use crate::web::lists;
use crate::web::request_id::RequestId;

use super::Oncepay;

/// The kinds of callers of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// A merchant. Idempotency keys are unique per merchant.
    Merchant,
    /// An operator. All operators share one space of idempotency keys, under the nil merchant.
    Operator,
    /// The processor, authenticated by a signature. Its message ids are the keys, in a space of their own.
    Acquirer,
}

/// The merchant in whose name the ids of the processor's messages are kept.
pub const ACQUIRER: MerchantId = MerchantId(Uuid::max());

impl HttpHost for Oncepay {
    fn identify(
        &self,
        request: &HttpRequest,
        caller: Caller,
    ) -> LocalBoxFuture<'static, Result<Identity, Error>> {
        let (request, known_keys) = (request.clone(), Arc::clone(&self.known_keys));
        Box::pin(async move {
            Ok(match caller {
                Caller::Merchant => {
                    let key = PresentedKey::of(&request, &known_keys).await?;
                    Identity { merchant: key.merchant, proof: Some(key.sha256), actor: None }
                }
                Caller::Operator => {
                    let operator = AuthenticatedOperator::identify(&request).await?;
                    Identity { merchant: OPERATORS, proof: Some(operator.sha256), actor: Some(operator.name) }
                }
                Caller::Acquirer => Identity { merchant: ACQUIRER, proof: None, actor: None },
            })
        })
    }

    fn confirm(&self, request: &HttpRequest, caller: Caller) -> LocalBoxFuture<'static, Result<(), Error>> {
        let request = request.clone();
        Box::pin(async move {
            match caller {
                Caller::Merchant => AuthenticatedMerchant::of(&request).await.map(|_| ()),
                Caller::Operator | Caller::Acquirer => Ok(()),
            }
        })
    }

    fn verify(&self, request: &HttpRequest, caller: Caller, body: &[u8]) -> Result<Option<String>, Error> {
        if caller != Caller::Acquirer {
            return Ok(None);
        }
        let header = |name: &str| only_header(request, name);
        self.messages.verify(&header, body, time::now()).map(Some).map_err(|refusal| {
            self.metrics.webhooks_refused.with_label_values(&[refusal.as_str()]).inc();
            Error::WebhookSignatureInvalid(refusal)
        })
    }

    fn check_query(&self, query: &str, known: &[&str], error: Option<Error>) -> Result<(), Error> {
        let mut unknown = lists::unknown_parameters(query, known);
        match error {
            None if unknown.is_empty() => Ok(()),
            None => Err(Error::ValidationFailed(unknown)),
            Some(Error::ValidationFailed(mut errors)) => {
                // An operation that reads its query has complained of them already.
                unknown.retain(|unknown| !errors.iter().any(|error| error.pointer == unknown.pointer));
                errors.extend(unknown);
                Err(Error::ValidationFailed(errors))
            }
            Some(error) => Err(error),
        }
    }

    fn note_unreadable(&self, message_id: &str, error: &Error) {
        self.metrics.webhooks_refused.with_label_values(&["unreadable"]).inc();
        log::error!(event_id = message_id; "an event of the processor can't be read: {}", error.detailed());
    }

    fn request_id(&self, request: &HttpRequest) -> String {
        RequestId::from_request(request).0
    }
}

/// Returns a header that is sent exactly once.
fn only_header<'a>(request: &'a HttpRequest, name: &str) -> Option<&'a str> {
    let mut values = request.headers().get_all(name);
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().ok(),
        _ => None,
    }
}
