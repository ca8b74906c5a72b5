//! A mutating request, read and ready to be executed.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use crate::base::json;
use crate::error::failure::Failure;

use super::envelope::Envelope;
use super::key::IdempotencyKey;
use super::operation::{ErrorOf, Input, Operation};
use super::policy::{Enforcement, Policy};

/// How a request is to be treated.
#[derive(Clone, Debug)]
pub(super) struct Treatment {
    /// The policy of its operation.
    pub policy: Arc<Policy>,
    /// Whether keys have effect for it.
    pub enforcement: Enforcement,
    /// How long it's ready to wait for another's answer: what the client asked for, at most what the policy
    /// allows.
    pub wait: Option<Duration>,
}

/// A mutating request: the only way for a handler to get its body, so that idempotency can't be forgotten.
pub struct IdempotentRequest<O> {
    /// Who asks, under which key.
    pub(super) envelope: Arc<Envelope>,
    /// What is asked for.
    pub(super) operation: Arc<O>,
    /// How it's to be treated.
    pub(super) treatment: Treatment,
}

impl<O: Operation> IdempotentRequest<O> {
    /// Reads a stored request again. Fails if this release wouldn't take it.
    pub(super) fn restore(
        envelope: Envelope,
        treatment: Treatment,
        host: &O::Host,
    ) -> Result<Self, ErrorOf<O>> {
        let value = json::parse(&envelope.content.body).map_err(Failure::JsonMalformed)?;
        let operation = read::<O>(&envelope.content.path, &value, host)?;
        Ok(Self { envelope: Arc::new(envelope), operation: Arc::new(operation), treatment })
    }

    /// The same without its key: to be executed, whatever was executed under that.
    pub(super) fn unkeyed(mut self) -> Self {
        Arc::make_mut(&mut self.envelope).key = IdempotencyKey::unkeyed();
        self.treatment.enforcement = Enforcement::Off;
        // Nobody will ask for it again.
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
        }
    }
}

/// Reads an operation from the path and the body of a request.
pub(super) fn read<O: Operation>(path: &str, body: &Value, host: &O::Host) -> Result<O, ErrorOf<O>> {
    O::read(&Input { pattern: O::DESCRIPTOR.path, path, body, host })
}
