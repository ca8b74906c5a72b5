//! What the engine is handed of this service: who its callers are, how they prove it, which errors it has, and what
//! operations get at.

mod callers;
pub mod metrics;

use std::sync::Arc;

use secrecy::SecretString;
use uuid::Uuid;

use crate::base::derived_secrets::{Purpose, Vault};
use crate::error::{Error, Failure, Problem};
use crate::idempotency::policies::Defaults;
use crate::idempotency::{self, Host, HostError, PolicySetting, Reply, ResourceKind};
use crate::processor::{Messages, Processor, ProcessorCall};
use crate::storage::db::Db;
use crate::web::auth::KnownKeys;

pub use callers::{ACQUIRER, Caller, OPERATORS};

/// The engine of this service.
pub type Engine = idempotency::Engine<Oncepay>;
/// An execution of one of its operations.
pub type Context<'a> = idempotency::Context<'a, Oncepay>;
/// What one of its operations is read from.
pub type Input<'a> = idempotency::Input<'a, Oncepay>;
/// One of its operations.
pub type Registered = idempotency::Registered<Oncepay>;
/// What there is to know of one of its operations.
pub type Descriptor = idempotency::Descriptor<Caller>;

/// This service, as the engine and its operations see it.
pub struct Oncepay {
    /// The pool.
    pub db: Db,
    /// The payment processor.
    pub processor: Arc<dyn Processor>,
    /// Where secrets that are handed out come from.
    pub vault: Vault,
    /// How the processor's messages are checked and read.
    pub messages: Arc<dyn Messages>,
    /// The API keys that were valid when they were first presented to this instance.
    pub known_keys: Arc<KnownKeys>,
    /// What operations and their callers count.
    pub metrics: Arc<metrics::Metrics>,
    /// Whether webhooks may be delivered to the service's own host.
    pub allows_loopback: bool,
    /// All operations.
    pub operations: Vec<Descriptor>,
}

impl Oncepay {
    /// The kinds of resources that operations are about.
    pub fn resource_kinds(&self) -> Vec<&'static ResourceKind> {
        resource_kinds(&self.operations)
    }

    /// The kind of resource that is called `name`, if an operation is about it.
    pub fn resource_kind(&self, name: &str) -> Option<&'static ResourceKind> {
        let mut kinds = self.operations.iter().filter_map(|operation| operation.target.kind());
        kinds.find(|kind| kind.name == name)
    }

    /// The settings of a policy that only `operation` has.
    pub fn policy_settings(&self, operation: &str) -> &'static [PolicySetting] {
        let found = self.operations.iter().find(|known| known.name == operation);
        found.map(|operation| operation.policy_settings).unwrap_or_default()
    }

    /// The policies of all operations until an operator says otherwise.
    pub fn policy_defaults(&self) -> Vec<Defaults> {
        self.operations.iter().map(Defaults::of).collect()
    }
}

impl Host for Oncepay {
    type Error = Error;
    type Caller = Caller;

    const PROOF_SQL: &'static str = "SELECT a.revoked_at IS NOT NULL AS is_revoked FROM api_keys a \
         WHERE a.merchant_id = asked.merchant_id AND a.key_sha256 = asked.key_sha256 LIMIT 1";

    fn is_processor_available(&self) -> bool {
        self.processor.is_available()
    }

    fn reveal(&self, seal: &str) -> Option<SecretString> {
        let (purpose, id) = seal.split_once('/')?;
        Some(self.vault.derive(purpose.parse().ok()?, id.parse().ok()?))
    }
}

/// The kinds of resources that `operations` are about, each once.
pub fn resource_kinds(operations: &[Descriptor]) -> Vec<&'static ResourceKind> {
    let mut kinds: Vec<_> = operations.iter().filter_map(|operation| operation.target.kind()).collect();
    kinds.sort_by_key(|kind| kind.name);
    kinds.dedup_by_key(|kind| kind.name);
    kinds
}

/// Names the secret that belongs into a sealed reply: the one for `purpose` of the object `id`.
pub fn seal(purpose: Purpose, id: Uuid) -> String {
    format!("{purpose}/{id}")
}

/// Names the processor call for one step of a request. `reference` is our id of the object that the call is for.
pub fn processor_call(context: &Context<'_>, step: &str, reference: impl ToString) -> ProcessorCall {
    ProcessorCall {
        key: context.derived_key(step),
        merchant: context.merchant(),
        reference: reference.to_string(),
        attempt: context.attempt(),
    }
}

impl HostError for Error {
    fn is_final(&self) -> bool {
        Error::is_final(self)
    }

    fn code(&self) -> &'static str {
        Error::code(self).as_str()
    }

    fn detailed(&self) -> String {
        Error::detailed(self)
    }

    fn log(&self, request_id: &str) {
        Error::log(self, request_id);
    }

    fn reply(&self, request_id: &str, path: &str) -> Result<Reply, Failure> {
        let problem = Problem::new(self, request_id, path);
        Ok(Reply::problem(problem.status, &problem)?.with_notes(self.headers()))
    }
}
