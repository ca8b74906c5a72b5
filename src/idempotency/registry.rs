//! All operations by name, for the recovery worker, the policies and the OpenAPI document.

use diesel::PgConnection;
use futures_util::future::BoxFuture;

use crate::base::scope;

use super::descriptor::Descriptor;
use super::engine::{DueRequest, Engine, RecoveryResult};
use super::host::Host;
use super::operation::{Abandoned, BatchedOperation, ExternalOperation, LocalOperation, Operation};

type Abandon<H> = fn(&mut PgConnection, &Abandoned) -> Result<(), <H as Host>::Error>;
type Recover<H> = fn(Engine<H>, DueRequest) -> BoxFuture<'static, RecoveryResult>;

/// An operation of the host `H`.
#[derive(Debug)]
pub struct RegisteredOperation<H: Host> {
    /// Description of the operation.
    pub descriptor: Descriptor<H::Caller>,
    external: Option<External<H>>,
}

/// What the engine does with a request of an external operation without its client.
#[derive(Debug)]
struct External<H: Host> {
    recover: Recover<H>,
    abandon: Abandon<H>,
}

impl<H: Host> Clone for External<H> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<H: Host> Copy for External<H> {}

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
        Self::new::<O>(Some(External {
            recover: |engine, due| Box::pin(async move { engine.recover::<O>(due).await }),
            abandon: O::abandon,
        }))
    }

    /// Registers an operation that calls the processor and whose requests may share statements.
    pub fn batched<O: BatchedOperation<Host = H>>() -> Self {
        assert!(O::DESCRIPTOR.batching.is_some(), "{} has no SQL to share", O::DESCRIPTOR.name);
        Self::external::<O>()
    }

    fn new<O: Operation<Host = H>>(external: Option<External<H>>) -> Self {
        Self { descriptor: O::DESCRIPTOR, external }
    }

    /// Whether the operation calls the processor.
    pub fn is_external(&self) -> bool {
        self.external.is_some()
    }

    /// Finishes an abandoned request.
    pub(super) async fn recover(&self, engine: Engine<H>, due: DueRequest) -> RecoveryResult {
        let Some(External { recover, .. }) = self.external else { return RecoveryResult::Lost };
        // Runs in a task of its own, so that a panic ends this attempt and not the worker. Its lease has to
        // expire then.
        // Its lines in the log name the request that is finished.
        let scope = due.scope(self.descriptor.name);
        tokio::spawn(scope::within(scope, recover(engine, due))).await.unwrap_or(RecoveryResult::Failed)
    }

    /// Releases what an abandoned request has set aside.
    pub(super) fn abandon(&self, conn: &mut PgConnection, abandoned: &Abandoned) -> Result<(), H::Error> {
        self.external.map_or(Ok(()), |external| (external.abandon)(conn, abandoned))
    }
}
