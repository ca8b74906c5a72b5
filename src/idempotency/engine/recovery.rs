//! Abandoned requests, which the recovery worker finishes.

use std::sync::Arc;

use chrono::{DateTime, Utc};

use crate::base::preconditions::Precondition;
use crate::base::scope::{HashedKey, Scope};
use crate::base::spans::{Kind, Span};
use crate::error::failure::Failure;
use crate::idempotency::envelope::Envelope;
use crate::idempotency::host::{Host, HostError};
use crate::idempotency::operation::ExternalOperation;
use crate::idempotency::policy::Enforcement;
use crate::idempotency::request::{IdempotentRequest, RequestRules};
use crate::idempotency::store::{self, Taker};

use super::{Engine, is_claim_lost};

/// An abandoned request that is due for recovery.
pub struct DueRequest {
    /// Name of the operation.
    pub operation: String,
    /// Time of the key's claim.
    pub created_at: DateTime<Utc>,
    /// The envelope that the last client sent.
    pub envelope: Envelope,
}

impl DueRequest {
    /// The scope of the request's recovery.
    pub(in crate::idempotency) fn scope(&self, operation: &'static str) -> Arc<Scope> {
        let envelope = &self.envelope;
        let scope = Scope::of_request(envelope.request_id.clone(), envelope.trace.clone());
        // The worker answers nobody.
        scope.close();
        scope.set_operation(operation);
        scope.set_merchant(envelope.merchant);
        scope.set_key(Arc::new(envelope.clone()));
        Arc::new(scope)
    }
}

/// Result of a recovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecoveryResult {
    /// The request is answered now.
    Finished,
    /// Another attempt was faster.
    Lost,
    /// The request isn't finished, and will be tried again.
    Failed,
    /// The request isn't finished, and an operator has to look at it.
    Parked,
}

impl RecoveryResult {
    /// Label in the metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::Lost => "lost",
            Self::Failed => "failed",
            Self::Parked => "parked",
        }
    }
}

impl<H: Host> Engine<H> {
    /// Finishes a stored, abandoned request, for the recovery worker.
    pub(in crate::idempotency) async fn recover<O: ExternalOperation<Host = H>>(
        &self,
        due: DueRequest,
    ) -> RecoveryResult {
        let request_id = due.envelope.request_id.clone();
        let mut span = Span::of(&due.envelope.trace, "recover", Kind::Internal);
        span.set("oncepay.operation", || Some(O::DESCRIPTOR.name.to_owned()));
        span.set("oncepay.key_hash", || Some(due.envelope.key_hash()));
        match self.take_over_and_finish::<O>(due).await {
            Ok(recovered) => {
                if recovered != RecoveryResult::Finished {
                    span.fail(recovered.as_str());
                }
                recovered
            }
            Err(error) => {
                error.log(&request_id);
                span.fail(error.code());
                RecoveryResult::Failed
            }
        }
    }

    async fn take_over_and_finish<O: ExternalOperation<Host = H>>(
        &self,
        due: DueRequest,
    ) -> Result<RecoveryResult, H::Error> {
        let policy = self.policy(O::DESCRIPTOR.name).await?;
        let lease = self.inner.settings.timing.lease;
        let DueRequest { envelope, created_at, .. } = due;
        let taking = envelope.clone();
        // Takes the request over before reading it: a request that can't be read must count as an attempt.
        let taken = self
            .inner
            .db
            .run_retrying(move |conn| store::take_over(conn, &taking, created_at, Taker::Recovery, lease))
            .await?;
        let Some(claim) = taken else { return Ok(RecoveryResult::Lost) };
        self.inner.metrics.takeovers.inc();

        let request_id = envelope.request_id.clone();
        let treatment = RequestRules {
            policy,
            enforcement: Enforcement::Enforce,
            wait: None,
            precondition: Precondition::Holds,
        };
        let attempt = async {
            let restored = IdempotentRequest::<O>::restore(envelope, treatment, self.host());
            let request = restored.map_err(|error| {
                Failure::internal(format!("a stored request can't be read any more: {}", error.detailed()))
            })?;
            self.call_and_commit(&request, &claim, None, None).await?;
            self.executed(&request, claim.attempt);
            Ok::<(), H::Error>(())
        };
        match attempt.await {
            Ok(()) => Ok(RecoveryResult::Finished),
            Err(error) if is_claim_lost(&error) => Ok(RecoveryResult::Lost),
            Err(error) => {
                error.log(&request_id);
                let is_parked = self.give_up(&claim, &request_id, &error, Taker::Recovery).await;
                if is_parked {
                    log::error!(
                        request_id = request_id.as_str(), operation = O::DESCRIPTOR.name, attempt = claim.attempt,
                        key_hash = claim.key.digest_for(claim.merchant).as_str();
                        "a request can't be finished and waits for an operator"
                    );
                }
                Ok(if is_parked { RecoveryResult::Parked } else { RecoveryResult::Failed })
            }
        }
    }
}
