//! The engine's half of the errors: failures that don't depend on the operation.
//!
//! Storage and the idempotency engine know these errors and nothing of the domain. A domain's own error type
//! holds a [`Failure`] in one of its variants and implements [`AsFailure`].

use std::fmt;
use std::time::Duration;

use super::catalogue::Code;

/// The technical cause of an error. It goes to the log, never to the client.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// A reason why any request can fail. `Display` is one sentence for the client.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the catalogue explains each variant")]
pub enum Failure {
    #[error("This API key is malformed or unknown.")]
    ApiKeyInvalid,
    #[error("This API key has been revoked.")]
    ApiKeyRevoked,
    #[error("The body must be at most {limit_bytes} bytes.")]
    BodyTooLarge { limit_bytes: usize },
    #[error("The body must be sent as {expected}, uncompressed.")]
    MediaTypeUnsupported { expected: &'static str },
    #[error("The body didn't arrive within {limit_s} s.")]
    BodyTimeout { limit_s: u64 },
    #[error("The body {0}.")]
    BodyIncomplete(&'static str),
    #[error("Send an `Idempotency-Key` header, for example a random UUID.")]
    IdempotencyKeyMissing,
    #[error("The `Idempotency-Key` {0}.")]
    IdempotencyKeyInvalid(&'static str),
    #[error("The body is no valid JSON: {0}.")]
    JsonMalformed(String),
    #[error("This idempotency key was used before with another method, path, query or body.")]
    IdempotencyKeyReused,
    #[error("This idempotency key was used before, and its answer isn't kept any more.")]
    IdempotencyKeyExpired,
    #[error("{}", if *.is_parked {
        "The request with this idempotency key couldn't be finished and waits for our operators."
    } else {
        "A request with this idempotency key is still running."
    })]
    IdempotencyRequestInProgress {
        /// How long this request has waited.
        waited_s: Option<u64>,
        is_parked: bool,
    },
    #[error(
        "A condition of the request, `If-Match` or `If-None-Match`, doesn't hold, so it wasn't performed."
    )]
    PreconditionFailed,
    #[error("There is no request with this idempotency key.")]
    IdempotencyKeyNotFound,
    #[error("The request with this idempotency key is finished.")]
    IdempotencyKeyNotInProgress,
    #[error(
        "It isn't known yet what came of this request; it's being finished. Sending it again would do it again."
    )]
    OutcomeUnknown {
        cause: Cause,
        /// Path of the resource that the request makes or changes, if its id is known.
        location: Option<String>,
    },
    #[error("The database can't be reached at the moment.")]
    DatabaseUnavailable(Cause),
    #[error("The request collided with others; nothing was changed.")]
    TransientConflict(Cause),
    #[error(
        "The payment processor didn't answer; retry with the same idempotency key to resume this payment."
    )]
    ProcessorUnavailable {
        cause: Cause,
        /// The pause that the processor asked for.
        retry_after: Option<Duration>,
    },
    #[error("The policy of this operation allows a merchant fewer {limited}.")]
    RateLimited {
        limited: Limited,
        /// Time after which another request may get through.
        retry_after: Duration,
    },
    #[error("Too many requests are waiting at the moment; nothing was done.")]
    Overloaded,
    #[error("The secret that belongs into this answer can't be derived here at the moment.")]
    SecretUnavailable,
    #[error("Something went wrong on our side.")]
    Internal(Cause),
    /// Another claim of the same key has taken over, and this claim's changes were rolled back. The engine
    /// answers with the winner's outcome; a client never sees this error.
    #[error("A later attempt of this request has taken over.")]
    ClaimLost,
}

impl Failure {
    /// Makes a failure for our own bug, with the technical cause.
    pub fn internal(cause: impl Into<Cause>) -> Self {
        Self::Internal(cause.into())
    }

    /// Makes a failure for a request of which it isn't known whether it takes effect, with the technical
    /// cause.
    pub fn outcome_unknown(cause: impl Into<Cause>) -> Self {
        Self::OutcomeUnknown { cause: cause.into(), location: None }
    }

    /// The code of this failure.
    pub fn code(&self) -> Code {
        match self {
            Self::ApiKeyInvalid => Code::ApiKeyInvalid,
            Self::ApiKeyRevoked => Code::ApiKeyRevoked,
            Self::BodyTooLarge { .. } => Code::BodyTooLarge,
            Self::MediaTypeUnsupported { .. } => Code::MediaTypeUnsupported,
            Self::BodyTimeout { .. } => Code::BodyTimeout,
            Self::BodyIncomplete(_) => Code::BodyIncomplete,
            Self::IdempotencyKeyMissing => Code::IdempotencyKeyMissing,
            Self::IdempotencyKeyInvalid(_) => Code::IdempotencyKeyInvalid,
            Self::JsonMalformed(_) => Code::JsonMalformed,
            Self::IdempotencyKeyReused => Code::IdempotencyKeyReused,
            Self::IdempotencyKeyExpired => Code::IdempotencyKeyExpired,
            Self::PreconditionFailed => Code::PreconditionFailed,
            Self::IdempotencyKeyNotFound => Code::IdempotencyKeyNotFound,
            Self::IdempotencyKeyNotInProgress => Code::IdempotencyKeyNotInProgress,
            Self::OutcomeUnknown { .. } => Code::OutcomeUnknown,
            Self::DatabaseUnavailable(_) => Code::DatabaseUnavailable,
            Self::TransientConflict(_) => Code::TransientConflict,
            Self::ProcessorUnavailable { .. } => Code::ProcessorUnavailable,
            Self::RateLimited { .. } => Code::RateLimited,
            Self::Overloaded => Code::Overloaded,
            Self::SecretUnavailable => Code::SecretUnavailable,
            Self::Internal(_) => Code::Internal,
            // A lost claim means that another attempt owns the key right now.
            Self::IdempotencyRequestInProgress { .. } | Self::ClaimLost => Code::IdempotencyRequestInProgress,
        }
    }

    /// The technical cause, for the log.
    pub fn cause(&self) -> Option<&Cause> {
        match self {
            Self::DatabaseUnavailable(cause)
            | Self::TransientConflict(cause)
            | Self::ProcessorUnavailable { cause, .. }
            | Self::OutcomeUnknown { cause, .. }
            | Self::Internal(cause) => Some(cause),
            _ => None,
        }
    }

    /// Code and cause, for the log. Contains names from the client's request, but no values.
    pub fn detailed(&self) -> String {
        let code = self.code().as_str();
        match (self, self.cause()) {
            (Self::JsonMalformed(detail), _) => format!("{code}: {detail}"),
            (_, Some(cause)) => format!("{code}: {cause}"),
            (_, None) => code.to_owned(),
        }
    }

    /// Writes the technical cause to the log, at the level that fits.
    pub fn log(&self, request_id: &str) {
        match (self, self.cause()) {
            (Self::Internal(_), Some(cause)) => log::error!(request_id; "internal error: {cause}"),
            (_, Some(cause)) => log::warn!(request_id; "{}: {cause}", self.code().as_str()),
            (_, None) => {}
        }
    }
}

/// A limit of a policy. `Display` is what there are too many of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limited {
    /// The number of requests per second.
    Rate,
    /// The number of requests at the same time.
    Concurrency,
}

impl Limited {
    /// Name in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::Concurrency => "concurrency",
        }
    }
}

impl fmt::Display for Limited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rate => "requests per second",
            Self::Concurrency => "requests at the same time",
        })
    }
}

/// An error that may be a [`Failure`].
pub trait AsFailure: From<Failure> {
    /// The [`Failure`] in this error, if it is one.
    fn failure(&self) -> Option<&Failure>;
}

impl AsFailure for Failure {
    fn failure(&self) -> Option<&Failure> {
        Some(self)
    }
}
