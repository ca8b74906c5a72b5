//! All operations by name, for the recovery worker, the policies and the OpenAPI document.

use futures_util::future::BoxFuture;

use super::descriptor::Descriptor;
use super::engine::{DueRequest, Engine, RecoveryResult};
use super::host::Host;
use super::operation::{BatchedOperation, ExternalOperation, LocalOperation, Operation};

type Recover<H> = fn(Engine<H>, DueRequest) -> BoxFuture<'static, RecoveryResult>;

/// An operation of the host `H`.
#[derive(Debug)]
pub struct RegisteredOperation<H: Host> {
    /// Description of the operation.
    pub descriptor: Descriptor<H::Caller>,
    recover: Option<Recover<H>>,
}

impl<H: Host> Clone for RegisteredOperation<H> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<H: Host> Copy for RegisteredOperation<H> {}

impl<H: Host> RegisteredOperation<H> {
    /// Registers an operation that changes only our own database. It needs no recovery: if it dies, it has
    /// never begun.
    pub fn local<O: LocalOperation<Host = H>>() -> Self {
        Self::new::<O>(None)
    }

    /// Registers an operation that calls the processor.
    pub fn external<O: ExternalOperation<Host = H>>() -> Self {
        Self::new::<O>(Some(|engine, due| Box::pin(async move { engine.recover::<O>(due).await })))
    }

    /// Registers an operation that calls the processor and whose requests may share statements.
    pub fn batched<O: BatchedOperation<Host = H>>() -> Self {
        assert!(O::DESCRIPTOR.batching.is_some(), "{} has no SQL to share", O::DESCRIPTOR.name);
        Self::external::<O>()
    }

    fn new<O: Operation<Host = H>>(recover: Option<Recover<H>>) -> Self {
        Self { descriptor: O::DESCRIPTOR, recover }
    }

    /// Whether the operation calls the processor.
    pub fn is_external(&self) -> bool {
        self.recover.is_some()
    }

    /// Finishes an abandoned request.
    pub(super) async fn recover(&self, engine: Engine<H>, due: DueRequest) -> RecoveryResult {
        let Some(recover) = self.recover else { return RecoveryResult::Lost };
        // Runs in a task of its own, so that a panic ends this attempt and not the worker. Its lease has to
        // expire then.
        tokio::spawn(recover(engine, due)).await.unwrap_or(RecoveryResult::Failed)
    }
}
