//! The operations that there are, for those who meet them by name: the recovery worker, the policies, the
//! OpenAPI document.

use futures_util::future::LocalBoxFuture;

use super::engine::Engine;
use super::operation::{ExternalOperation, LocalOperation, Together};
use super::policy::Policy;
use super::recovery::{Due, Recovered};
use super::request::{Caller, Operation};

type Recover = fn(Engine, Due) -> LocalBoxFuture<'static, Recovered>;

/// An operation.
#[derive(Clone, Copy, Debug)]
pub struct Registered {
    /// Its name.
    pub name: &'static str,
    /// Who may ask for it.
    pub caller: Caller,
    /// Whether an empty body stands for `{}`.
    pub body_optional: bool,
    /// How it treats its keys until an operator says otherwise.
    pub policy: fn() -> Policy,
    pub(super) together: Option<Together>,
    recover: Option<Recover>,
}

impl Registered {
    /// An operation that changes only our own database. There is nothing to recover of it: if it dies, it has
    /// never begun.
    pub fn local<O: LocalOperation>() -> Self {
        Self::new::<O>(None)
    }

    /// An operation that calls the processor.
    pub fn external<O: ExternalOperation>() -> Self {
        let recover: Recover = |engine, due| Box::pin(async move { engine.recover::<O>(due).await });
        Self { together: O::TOGETHER, ..Self::new::<O>(Some(recover)) }
    }

    fn new<O: Operation>(recover: Option<Recover>) -> Self {
        Self {
            name: O::NAME,
            caller: O::CALLER,
            body_optional: O::BODY_OPTIONAL,
            policy: O::policy,
            together: None,
            recover,
        }
    }

    /// Whether it calls the processor.
    pub fn is_external(&self) -> bool {
        self.recover.is_some()
    }

    /// Finishes a request that died.
    pub(super) async fn recover(&self, engine: Engine, due: Due) -> Recovered {
        let Some(recover) = self.recover else { return Recovered::Lost };
        // A task of its own, so that a panic ends this attempt and not the worker. Its lease has to run out then.
        actix_web::rt::spawn(recover(engine, due)).await.unwrap_or(Recovered::Failed)
    }
}
