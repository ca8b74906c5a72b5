//! The payment processor: the provider that moves money between cardholders and us.
//!
//! Three traits describe a provider. [`Processor`] makes calls to it, [`Books`] reads its own list of
//! operations, and [`Messages`] verifies and reads its webhooks. An [`Adapter`] holds an implementation of
//! each. The rest of the service sees only these traits. `docs/processor.md` says how to write an adapter.
//!
//! This module has two adapters: the [`Sandbox`], which plays a provider inside this process, and
//! [`HttpProcessor`], which speaks the protocol of `oncepay simulator`. [`calls::once`] and [`Breaker`] are
//! for adapters that call over a network.

mod breaker;
pub mod calls;
mod error;
mod http;
pub mod metrics;
mod operation;
mod options;
mod sandbox;
mod test_cards;

mod event;

use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use serde_json::{Map, Value};

use crate::base::ids::MerchantId;
use crate::base::money::Money;
use crate::base::signature::Refusal;
use crate::base::trace::TraceContext;
use crate::error::FieldError;

pub use breaker::Breaker;
pub use error::{CallRefusal, ProcessorError, RefusalReason, or_refusal};
pub use event::{Change, Event, EventAmount, Notice};
pub use http::{HttpProcessor, HttpSettings, StandardMessages};
pub use operation::{Asked, OperationKind, OperationStatus, Page, ProcessorOperation};
pub use options::{PaymentMethods, ProcessorOptions};
pub use sandbox::{CallRecord, Sandbox};
pub use test_cards::{TestCard, UnknownTestCard};

/// A provider, as the service uses it.
#[derive(Clone)]
pub struct Adapter {
    /// Makes calls to the provider.
    pub processor: Arc<dyn Processor>,
    /// Reads the provider's list of operations. `None` if the provider keeps no books; then nothing is
    /// reconciled.
    pub books: Option<Arc<dyn Books>>,
    /// Verifies and reads the provider's webhooks.
    pub messages: Arc<dyn Messages>,
}

/// The calls of a provider. Each is idempotent under its key: a repetition has no further effect and returns
/// the same outcome.
///
/// An error means that the outcome of the call isn't known, unless the variant of [`ProcessorError`] says
/// more. A call that can never succeed must fail with [`ProcessorError::Refused`]: after any other error, the
/// service tries again.
#[async_trait]
pub trait Processor: Send + Sync {
    /// Checks a payment method token before any call. The error is the end of a sentence whose subject is the
    /// field. Tokens are opaque to the service. A provider whose tokens don't show whether they exist accepts
    /// all of them here, and declines later.
    fn check_payment_method(&self, _token: &str) -> Result<(), String> {
        Ok(())
    }

    /// Asks the issuer for `amount`, which is then held for us but not moved yet. If the decision takes time
    /// and `capture` is given, the provider captures the whole amount upon approval, as if by that call.
    async fn authorize(
        &self,
        call: &ProcessorCall,
        amount: Money,
        payment_method: &str,
        capture: Option<&ProcessorCall>,
    ) -> Result<Authorization, ProcessorError>;

    /// Moves `amount` of an authorization to us, and releases the rest. Works once per authorization.
    async fn capture(
        &self,
        call: &ProcessorCall,
        authorization_id: &str,
        amount: Money,
    ) -> Result<(), ProcessorError>;

    /// Gives up an authorization. No money moves.
    async fn void(&self, call: &ProcessorCall, authorization_id: &str) -> Result<(), ProcessorError>;

    /// Returns `amount` of a capture to the customer.
    async fn refund(
        &self,
        call: &ProcessorCall,
        authorization_id: &str,
        amount: Money,
    ) -> Result<(), ProcessorError>;

    /// Sends `amount` to a merchant's bank account. An event reports later whether the payout has arrived.
    async fn payout(
        &self,
        call: &ProcessorCall,
        amount: Money,
        destination: &str,
    ) -> Result<(), ProcessorError>;

    /// Finds the outcome of a call by its key. Returns `None` if the provider doesn't know the key, so the
    /// call has had no effect. Also returns `None` if the provider has no look-up, but answers a repeated
    /// call with the first outcome.
    async fn find(&self, call: &ProcessorCall) -> Result<Option<ProcessorOperation>, ProcessorError>;

    /// True if the provider works. Otherwise calls fail at once, with [`ProcessorError::Down`].
    fn is_available(&self) -> bool {
        true
    }

    /// Watches the provider's health while the server runs, for [`is_available`](Self::is_available). Returns
    /// at once if there is nothing to watch.
    async fn watch(&self) {}
}

/// The books of a provider: its own list of operations.
#[async_trait]
pub trait Books: Send + Sync {
    /// Lists up to `limit` operations that were made or have changed after the cursor `after`, in the order
    /// of their [`sequence`](ProcessorOperation::sequence). The cursor is 0 at first, then the sequence of
    /// the last operation read.
    async fn operations(&self, after: i64, limit: usize) -> Result<Page, ProcessorError>;
}

/// The messages (webhooks) of a provider: their verification and their content.
pub trait Messages: Send + Sync {
    /// Verifies that the provider signed a message around `now`. Returns the id of the message's event, which
    /// is the same in every delivery. `header` returns a header that was sent exactly once, by its name in
    /// lower case.
    ///
    /// Errors, in the order checked: malformed, out of time, forged.
    fn verify<'a>(
        &self,
        header: &dyn Fn(&str) -> Option<&'a str>,
        body: &[u8],
        now: DateTime<Utc>,
    ) -> Result<String, Refusal>;

    /// Reads the members of a message's body. Ignores unknown members, since a provider may add to its
    /// events. Returns all errors, with JSON pointers.
    fn read(&self, body: &Map<String, Value>) -> Result<Event, Vec<FieldError>>;

    /// Types of events, as sent, that are read into a [`Notice`]. The metrics of these types begin at 0.
    fn types(&self) -> &'static [&'static str];
}

/// Identifies a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessorCall {
    /// Idempotency key towards the processor.
    pub key: String,
    /// Merchant on whose behalf the call is made.
    pub merchant: MerchantId,
    /// Our id of the call's object (`ch_…`, `re_…`, `po_…`), the same in every attempt. The reconciliation
    /// matches the processor's books with ours by it.
    pub reference: String,
    /// Number of the request's attempt, from 1. From 2 on, an earlier attempt may have got through. The
    /// sandbox and the simulator choose their faults by it.
    pub attempt: u32,
    /// The span of the attempt. A provider that follows traces gets a [child](TraceContext::child) of it with each
    /// request, in `traceparent`.
    pub trace: TraceContext,
}

/// Result of an authorization.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authorization {
    /// The processor's id of the authorization.
    pub id: String,
    /// The issuer's decision.
    pub decision: Decision,
}

/// The issuer's decision. A repetition under the same key doesn't change it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The money is held.
    Approved,
    /// Less than the amount is held.
    PartiallyApproved,
    /// The money isn't held.
    Declined(Decline),
    /// The customer has to do something first. An event reports the decision.
    Pending,
}

/// The reason for an issuer's decline: the provider's code, which is passed on to the merchant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decline(String);

impl Decline {
    /// Code of a decline without a reason.
    const GENERIC: &str = "generic_decline";
    /// Code for lack of money, the only decline with an error code of its own.
    const INSUFFICIENT_FUNDS: &str = "insufficient_funds";
    /// Maximum number of characters in a code.
    const LENGTH_MAX: usize = 100;

    /// Makes a decline with the provider's code, without control characters and cut after 100 characters. If
    /// nothing is left of the code, the decline is generic.
    pub fn new(code: &str) -> Self {
        let kept: String = code.chars().filter(|char| !char.is_control()).take(Self::LENGTH_MAX).collect();
        if kept.is_empty() { Self::generic() } else { Self(kept) }
    }

    /// Makes a decline without a reason.
    pub fn generic() -> Self {
        Self(Self::GENERIC.to_owned())
    }

    /// Makes a decline for lack of money.
    pub fn insufficient_funds() -> Self {
        Self(Self::INSUFFICIENT_FUNDS.to_owned())
    }

    /// Returns the code.
    pub fn code(&self) -> &str {
        &self.0
    }

    /// True if the account doesn't hold enough.
    pub fn is_insufficient_funds(&self) -> bool {
        self.0 == Self::INSUFFICIENT_FUNDS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_declines_pass_through() {
        assert_eq!(Decline::new("do_not_honor").code(), "do_not_honor");
        assert_eq!(Decline::new("insufficient_funds"), Decline::insufficient_funds());
        assert!(!Decline::new("Insufficient_funds").is_insufficient_funds());
        for nothing in ["", "\0\n"] {
            assert_eq!(Decline::new(nothing), Decline::generic());
        }
        assert_eq!(Decline::new(&"x\0".repeat(200)).code(), "x".repeat(100));
    }
}
