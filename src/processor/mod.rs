//! The payment processor: who moves the money between cardholder and us.

mod breaker;
mod http;
pub mod metrics;
mod options;
mod payment_method;
mod protocol;
mod sandbox;

use async_trait::async_trait;

use crate::base::ids::MerchantId;
use crate::base::money::Money;

pub use http::{HttpProcessor, HttpSettings};
pub use options::ProcessorOptions;
pub use payment_method::{PaymentMethod, UnknownPaymentMethod};
pub use protocol::{AcquirerOperation, Refusal};
pub use sandbox::{CallRecord, Sandbox};

/// A payment processor. Each call is idempotent under its key: repeating it has no further effect and
/// tells the same outcome.
#[async_trait]
pub trait Processor: Send + Sync {
    /// Asks the issuer for `amount`. The money is held for us, not yet moved. If the decision takes time and `capture` is
    /// given, all of it is captured as soon as it's approved, as if by that call.
    async fn authorize(
        &self,
        call: &ProcessorCall,
        amount: Money,
        payment_method: &PaymentMethod,
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

    /// Whether calls make sense at the moment. If not they fail at once, with [`ProcessorError::Down`].
    fn is_available(&self) -> bool {
        true
    }
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
    /// Which attempt of the request makes the call, from 1. Real processors don't care; the sandbox plays
    /// its faults by it.
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Money is held.
    Approved,
    /// It isn't.
    Declined(Decline),
    /// The customer has to do something first; the processor will tell.
    Pending,
}

/// Why an issuer declined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decline {
    /// Without telling.
    Generic,
    /// The account doesn't hold enough.
    InsufficientFunds,
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
        Self::ProcessorUnavailable(error.into())
    }
}
