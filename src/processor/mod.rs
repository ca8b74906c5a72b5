//! The payment processor: the provider that moves money between cardholders and us.
//!
//! Three traits describe a provider. [`Processor`] makes it do things, [`Books`] reads what it says it did, and
//! [`Messages`] checks and reads what it sends us by itself. An [`Adapter`] holds an implementation of each. The rest of the
//! service sees these traits only; `docs/processor.md` says how to write an adapter.
//!
//! Two adapters are here: the [`Sandbox`], which plays a provider inside this process, and [`HttpProcessor`], which speaks
//! the protocol of `oncepay simulator`. [`calls::once`] and [`Breaker`] are for adapters that call over a network.

mod breaker;
pub mod calls;
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
use crate::error::FieldError;

pub use breaker::Breaker;
pub use event::{Change, Event, Notice};
pub use http::{HttpProcessor, HttpSettings, StandardMessages};
pub use operation::{OperationKind, OperationStatus, Page, ProcessorOperation};
pub use options::ProcessorOptions;
pub use sandbox::{CallRecord, Sandbox};
pub use test_cards::{TestCard, UnknownTestCard};

/// A provider as the service uses it.
#[derive(Clone)]
pub struct Adapter {
    /// Makes it do things.
    pub processor: Arc<dyn Processor>,
    /// Reads what it says it did. `None`: it keeps no books, so that nothing is reconciled.
    pub books: Option<Arc<dyn Books>>,
    /// Checks and reads what it sends by itself.
    pub messages: Arc<dyn Messages>,
}

/// What a provider does. Each call is idempotent under its key: repeating it has no further effect and tells the same outcome.
///
/// An error of a call means that its outcome isn't known, unless the variant of [`ProcessorError`] says more.
#[async_trait]
pub trait Processor: Send + Sync {
    /// Checks a payment method token at the door, without asking anybody. The error is the end of a sentence whose subject is
    /// the field. Tokens are opaque to the service, so that a provider whose tokens don't show whether they exist takes all
    /// of them here and declines later.
    fn check_payment_method(&self, _token: &str) -> Result<(), String> {
        Ok(())
    }

    /// Asks the issuer for `amount`. The money is held for us, not yet moved. If the decision takes time and `capture` is
    /// given, all of it is captured as soon as it's approved, as if by that call.
    async fn authorize(
        &self,
        call: &ProcessorCall,
        amount: Money,
        payment_method: &str,
        capture: Option<&ProcessorCall>,
    ) -> Result<Authorization, ProcessorError>;

    /// Moves `amount` of an authorization to us; what is left of it is released. Works once.
    async fn capture(
        &self,
        call: &ProcessorCall,
        authorization_id: &str,
        amount: Money,
    ) -> Result<(), ProcessorError>;

    /// Gives an authorization up; nothing is moved.
    async fn void(&self, call: &ProcessorCall, authorization_id: &str) -> Result<(), ProcessorError>;

    /// Returns `amount` of what was captured to the customer.
    async fn refund(
        &self,
        call: &ProcessorCall,
        authorization_id: &str,
        amount: Money,
    ) -> Result<(), ProcessorError>;

    /// Sends `amount` to a merchant's bank account. It's on its way then; whether it arrives is told later.
    async fn payout(
        &self,
        call: &ProcessorCall,
        amount: Money,
        destination: &str,
    ) -> Result<(), ProcessorError>;

    /// Finds what came of a call by its key. `None` if the provider doesn't know the key, so that the call has had no effect,
    /// or can't look it up, but tells the first outcome when the call is repeated.
    async fn find(&self, call: &ProcessorCall) -> Result<Option<ProcessorOperation>, ProcessorError>;

    /// Whether calls make sense at the moment. If not they fail at once, with [`ProcessorError::Down`].
    fn is_available(&self) -> bool {
        true
    }

    /// Watches over the provider's health for as long as the server runs, for [`is_available`](Self::is_available). Returns
    /// at once where there is nothing to watch.
    async fn watch(&self) {}
}

/// The books of a provider: what it says it did.
#[async_trait]
pub trait Books: Send + Sync {
    /// Lists up to `limit` of the operations that were made or have changed after the cursor `after`, in the order of their
    /// [`sequence`](ProcessorOperation::sequence). The cursor is 0 at first, then the sequence of the last operation read.
    async fn operations(&self, after: i64, limit: usize) -> Result<Page, ProcessorError>;
}

/// The messages (webhooks) of a provider: how to tell that one is genuine, and what it says.
pub trait Messages: Send + Sync {
    /// Checks that the provider has signed a message around `now`, and returns the id of its event, which is the same with
    /// every delivery. `header` gives a header that was sent exactly once, by its name in lower case.
    ///
    /// Errors, in the order checked: malformed, out of time, forged.
    fn verify<'a>(
        &self,
        header: &dyn Fn(&str) -> Option<&'a str>,
        body: &[u8],
        now: DateTime<Utc>,
    ) -> Result<String, Refusal>;

    /// Reads the members of a message's body. Passes over what it doesn't know: a provider may add to its events. The errors
    /// are all there are, with JSON pointers.
    fn read(&self, body: &Map<String, Value>) -> Result<Event, Vec<FieldError>>;

    /// Types of events, as sent, that are read into a [`Notice`]. For metrics, which begin at 0 for each of them.
    fn types(&self) -> &'static [&'static str];
}

/// Names a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessorCall {
    /// Idempotency key towards the processor.
    pub key: String,
    /// Whose money it's about.
    pub merchant: MerchantId,
    /// Our id of what the call is for (`ch_…`, `re_…`, `po_…`), the same in every attempt. By it the processor's
    /// books are compared with ours.
    pub reference: String,
    /// Which attempt of the request makes the call, from 1. From 2 on an earlier attempt may have got through. The sandbox
    /// and the simulator play their faults by it.
    pub attempt: u32,
}

/// What came of asking for money.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authorization {
    /// The processor's name for it.
    pub id: String,
    /// The issuer's decision.
    pub decision: Decision,
}

/// The issuer's decision. Asking again under the same key doesn't change it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Money is held.
    Approved,
    /// It isn't.
    Declined(Decline),
    /// The customer has to do something first; the processor will tell.
    Pending,
}

/// Why an issuer declined: the provider's code, which is passed on to the merchant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decline(String);

impl Decline {
    /// Code where the provider doesn't tell a reason.
    const GENERIC: &str = "generic_decline";
    /// Code of an account that doesn't hold enough, the one that has an error code of its own.
    const INSUFFICIENT_FUNDS: &str = "insufficient_funds";
    /// Most characters of a code.
    const LENGTH_MAX: usize = 100;

    /// A decline with the provider's code, which is cut after 100 characters and without control characters; a generic one
    /// if nothing is left of it.
    pub fn new(code: &str) -> Self {
        let kept: String = code.chars().filter(|char| !char.is_control()).take(Self::LENGTH_MAX).collect();
        if kept.is_empty() { Self::generic() } else { Self(kept) }
    }

    /// A decline whose reason isn't told.
    pub fn generic() -> Self {
        Self(Self::GENERIC.to_owned())
    }

    /// A decline for lack of money.
    pub fn insufficient_funds() -> Self {
        Self(Self::INSUFFICIENT_FUNDS.to_owned())
    }

    /// The code.
    pub fn code(&self) -> &str {
        &self.0
    }

    /// Whether the account doesn't hold enough.
    pub fn is_insufficient_funds(&self) -> bool {
        self.0 == Self::INSUFFICIENT_FUNDS
    }
}

/// There is no outcome: the call may or may not have taken effect, unless the variant says more.
#[derive(Debug, thiserror::Error)]
pub enum ProcessorError {
    /// No answer in time, or the connection broke.
    #[error("the processor's answer was lost")]
    AnswerLost,
    /// The processor said that it failed.
    #[error("the processor failed")]
    Failed,
    /// The processor couldn't be reached, so that nothing has happened.
    #[error("the processor can't be reached")]
    Unreachable,
    /// The processor is known to be down and wasn't asked.
    #[error("the processor is down and wasn't asked")]
    Down,
    /// The processor won't do that, ever: the two sides disagree on what there is. Nothing has happened.
    #[error("the processor refuses: {code}")]
    Refused {
        /// The processor's reason.
        code: String,
    },
}

impl From<ProcessorError> for crate::error::Error {
    fn from(error: ProcessorError) -> Self {
        crate::error::Failure::ProcessorUnavailable(error.into()).into()
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
