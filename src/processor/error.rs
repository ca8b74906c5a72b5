//! Errors of calls to a provider: refusals, which are final, and everything after which the outcome isn't known.

use std::time::Duration;

use crate::base::time;
use crate::error::{Error, Failure};

/// Maximum pause that is obeyed. A provider that means more is asked again after it.
const PAUSE_MAX: Duration = Duration::from_secs(60 * 60);
/// Minimum pause, and the one after an answer that names none.
const PAUSE_MIN: Duration = Duration::from_secs(1);

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
    /// The processor asks for a pause. It says nothing of the call's outcome: an earlier try may have got through.
    #[error("the processor asks for a pause of {} s", .retry_after.as_secs())]
    Busy {
        /// Time after which the call may be repeated.
        retry_after: Duration,
    },
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

impl ProcessorError {
    /// Reads an answer that asks for a pause: 429, or 503 with a `Retry-After`, which is given as a number of seconds or
    /// a date by the host's clock. `None` for other answers. The pause is between a second and an hour.
    pub fn busy(status: u16, retry_after: Option<&str>) -> Option<Self> {
        let wanted = retry_after.and_then(|text| time::retry_after(text, time::now()));
        let retry_after = match status {
            429 => wanted.unwrap_or_default(),
            503 => wanted?,
            _ => return None,
        };
        Some(Self::Busy { retry_after: retry_after.clamp(PAUSE_MIN, PAUSE_MAX) })
    }

    /// The pause that the processor asked for.
    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Busy { retry_after } => Some(*retry_after),
            _ => None,
        }
    }
}

impl From<ProcessorError> for Error {
    /// For an error after which the request goes on later. Separate a final refusal from the others first, with
    /// [`or_refusal`].
    fn from(error: ProcessorError) -> Self {
        let retry_after = error.retry_after();
        Failure::ProcessorUnavailable { cause: error.into(), retry_after }.into()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_asked_for_with_429_or_with_a_date_or_time_of_503() {
        let far = (time::now() + chrono::TimeDelta::days(2)).to_rfc2822();
        for (status, retry_after, pause_s) in [
            (429, Some("30"), Some(30)),
            (429, Some("0"), Some(1)),
            (429, Some("later"), Some(1)),
            (429, None, Some(1)),
            (429, Some("86400"), Some(3600)),
            (503, Some("30"), Some(30)),
            (503, Some(far.as_str()), Some(3600)),
            (503, Some("later"), None),
            (503, None, None),
            (500, Some("30"), None),
            (200, Some("30"), None),
        ] {
            let pause = ProcessorError::busy(status, retry_after).and_then(|error| error.retry_after());
            assert_eq!(pause.map(|pause| pause.as_secs()), pause_s, "{status} {retry_after:?}");
        }
    }
}
