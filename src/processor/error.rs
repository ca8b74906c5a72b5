//! Errors of calls to a provider: refusals, which are final, and everything after which the outcome isn't known.

/// A provider's final refusal of a call. The call has had no effect and never will have one under its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallRefusal {
    /// The provider's code, cut after 100 characters and without control characters.
    pub code: String,
    /// The part of the reason that decides how the payment goes on.
    pub reason: RefusalReason,
}

/// Reasons for a refusal that the service treats differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalReason {
    /// The authorization holds no money any more: it lapsed, was voided or was never granted. Then a void of it has
    /// nothing left to do, and a capture can never succeed.
    NothingHeld,
    /// Any other reason.
    Other,
}

impl CallRefusal {
    /// Maximum number of characters in a code.
    const CODE_MAX: usize = 100;

    /// A refusal with the provider's code.
    pub fn new(code: &str, reason: RefusalReason) -> Self {
        let code: String = code.chars().filter(|char| !char.is_control()).take(Self::CODE_MAX).collect();
        Self { code, reason }
    }

    /// True if the authorization holds no money any more.
    pub fn is_nothing_held(&self) -> bool {
        self.reason == RefusalReason::NothingHeld
    }
}

/// The reason why a call has no outcome yet, or its final refusal.
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
    /// The processor rejects the request for a reason that has nothing to do with the payment: our credentials, a path that
    /// it doesn't serve, a key that it has seen with another request. Only people can mend that, so the call stays open.
    #[error("the processor rejects our requests: {code}")]
    Rejected {
        /// The processor's reason.
        code: String,
    },
    /// The processor answered something that isn't an answer to this call, such as the answer to another one. So the
    /// outcome of this one isn't known.
    #[error("the processor's answer isn't about this call: its {member} differs")]
    Mismatch {
        /// Name of the member that differs.
        member: &'static str,
    },
    /// The processor refuses the call for good.
    #[error("the processor refuses: {}", .0.code)]
    Refused(CallRefusal),
}

impl From<ProcessorError> for crate::error::Error {
    /// For an error after which the request goes on later. Separate a final refusal from the others first, with
    /// [`or_refusal`].
    fn from(error: ProcessorError) -> Self {
        crate::error::Failure::ProcessorUnavailable(error.into()).into()
    }
}

/// Separates a final refusal, which is an outcome of the call, from errors after which the call has no outcome yet.
pub fn or_refusal<T>(result: Result<T, ProcessorError>) -> Result<Result<T, CallRefusal>, ProcessorError> {
    match result {
        Ok(done) => Ok(Ok(done)),
        Err(ProcessorError::Refused(refusal)) => Ok(Err(refusal)),
        Err(error) => Err(error),
    }
}
