//! The payment processor: who moves the money between cardholder and us.

mod payment_method;
mod sandbox;

use async_trait::async_trait;

use crate::money::Money;

pub use payment_method::{PaymentMethod, UnknownPaymentMethod};
pub use sandbox::{CallRecord, Sandbox};

/// A payment processor. Each call is idempotent under its key: repeating it has no further effect and
/// tells the same outcome.
#[async_trait]
pub trait Processor: Send + Sync {
    /// Asks the issuer for `amount`. The money is held for us, not yet moved.
    async fn authorize(
        &self,
        call: &ProcessorCall,
        amount: Money,
        payment_method: &PaymentMethod,
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
}

/// Names a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessorCall {
    /// Idempotency key towards the processor.
    pub key: String,
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

/// There is no outcome: the call may or may not have taken effect.
#[derive(Debug, thiserror::Error)]
pub enum ProcessorError {
    /// No answer in time, or the connection broke.
    #[error("the processor's answer was lost")]
    AnswerLost,
    /// The processor said that it failed.
    #[error("the processor failed")]
    Failed,
}

impl From<ProcessorError> for crate::error::Error {
    fn from(error: ProcessorError) -> Self {
        Self::ProcessorUnavailable(error.into())
    }
}
