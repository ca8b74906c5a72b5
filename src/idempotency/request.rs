//! A mutating request, read and ready to be executed.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use crate::base::json;
use crate::base::preconditions::Precondition;
use crate::error::failure::Failure;

use super::envelope::Envelope;
use super::key::IdempotencyKey;
use super::limits::Pass;
use super::operation::{ErrorOf, Input, Operation};
use super::policy::{Enforcement, Policy};
use super::progress::Progress;

/// The rules for a request.
#[derive(Clone, Debug)]
pub(super) struct RequestRules {
    /// The policy of its operation.
    pub policy: Arc<Policy>,
    /// The enforcement that applies to it.
    pub enforcement: Enforcement,
    /// Time that it can wait for another request's answer: what the client asked for, up to the policy's
    /// maximum.
    pub wait: Option<Duration>,
    /// Whether its conditions hold. They are no part of the fingerprint: a retry is the same request, and gets the
    /// answer of its first execution.
    pub precondition: Precondition,
}

impl RequestRules {
    /// Ends a request that would succeed, if its conditions don't hold. Errors: `precondition_failed`.
    ///
    /// A failure comes first (RFC 9110, section 13.2.1), so the operation has to have done its checks. What it has
    /// written is rolled back.
    pub fn check_precondition(&self) -> Result<(), Failure> {
        match self.precondition {
            Precondition::Holds => Ok(()),
            Precondition::IfMatchFails | Precondition::IfNoneMatchFails => Err(Failure::PreconditionFailed),
        }
    }
}

/// A mutating request. A handler gets its body only from here, so that idempotency can't be forgotten.
pub struct IdempotentRequest<O> {
    /// The caller, the key and the content.
    pub(super) envelope: Arc<Envelope>,
    /// The operation that is requested.
    pub(super) operation: Arc<O>,
    /// The rules for it.
    pub(super) treatment: RequestRules,
    /// Whether the operation calls the processor.
    pub(super) calls_processor: bool,
    /// What has become of it so far.
    pub(super) progress: Arc<Progress>,
    /// What it has taken of what it shares with others.
    pub(super) pass: Arc<Pass>,
}

impl<O: Operation> IdempotentRequest<O> {
    /// Reads a stored request again. Fails if this release would refuse it.
    pub(super) fn restore(
        envelope: Envelope,
        treatment: RequestRules,
        host: &O::Host,
    ) -> Result<Self, ErrorOf<O>> {
        let value = json::parse(&envelope.content.body).map_err(Failure::JsonMalformed)?;
        let content = &envelope.content;
        let operation = read::<O>(&content.path, &content.query, &value, host)?;
        let (envelope, operation) = (Arc::new(envelope), Arc::new(operation));
        let (progress, pass) = (Arc::default(), Arc::default());
        Ok(Self { envelope, operation, treatment, calls_processor: true, progress, pass })
    }

    /// Whether the same request can be sent again without being executed again.
    pub(super) fn is_protected(&self) -> bool {
        self.treatment.enforcement == Enforcement::Enforce
    }

    /// Gives the request a key of its own, so that it executes regardless of its client's key.
    pub(super) fn unkeyed(mut self) -> Self {
        Arc::make_mut(&mut self.envelope).key = IdempotencyKey::unkeyed();
        self.progress = Arc::default();
        self.treatment.enforcement = Enforcement::Off;
        // No client will ask for it again.
        let policy = Arc::make_mut(&mut self.treatment.policy);
        (policy.ttl_seconds, policy.tombstone_seconds) = (60, 0);
        self
    }
}

impl<O> Clone for IdempotentRequest<O> {
    fn clone(&self) -> Self {
        Self {
            envelope: Arc::clone(&self.envelope),
            operation: Arc::clone(&self.operation),
            treatment: self.treatment.clone(),
            calls_processor: self.calls_processor,
            progress: Arc::clone(&self.progress),
            pass: Arc::clone(&self.pass),
        }
    }
}

/// Reads an operation from the path, the query and the body of a request.
pub(super) fn read<O: Operation>(
    path: &str,
    query: &str,
    body: &Value,
    host: &O::Host,
) -> Result<O, ErrorOf<O>> {
    O::read(&Input { pattern: O::DESCRIPTOR.path, path, query, body, host })
}
