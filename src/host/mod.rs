//! The engine's view of this service: its callers and their proofs, its errors, and the resources of its
//! operations.

mod actions;
mod callers;
pub mod metrics;

use std::sync::Arc;

use secrecy::SecretString;
use uuid::Uuid;

use crate::base::derived_secrets::{MasterKeyVersion, Purpose, Vault};
use crate::error::{Error, Failure, Problem};
use crate::idempotency::policies::Defaults;
use crate::idempotency::{self, Host, HostError, PolicySetting, Reply, ResourceKind};
use crate::processor::{Messages, Processor, ProcessorCall};
use crate::storage::db::Db;
use crate::web::auth::KnownKeys;

pub use actions::record_action;
pub use callers::Caller;

/// The engine of this service.
pub type Engine = idempotency::Engine<Oncepay>;
/// An execution of one of this service's operations.
pub type Context<'a> = idempotency::Context<'a, Oncepay>;
/// The input of one of this service's operations.
pub type Input<'a> = idempotency::Input<'a, Oncepay>;
/// A registered operation of this service.
pub type RegisteredOperation = idempotency::RegisteredOperation<Oncepay>;
/// The description of one of this service's operations.
pub type Descriptor = idempotency::Descriptor<Caller>;

/// This service, as the engine and its operations see it.
pub struct Oncepay {
    /// The connection pool.
    pub db: Db,
    /// The payment processor.
    pub processor: Arc<dyn Processor>,
    /// The source of secrets that the service hands out.
    pub vault: Vault,
    /// Verifies and reads the processor's messages.
    pub messages: Arc<dyn Messages>,
    /// The API keys that were valid when this instance last saw them.
    pub known_keys: Arc<KnownKeys>,
    /// Metrics of operations and their callers.
    pub metrics: Arc<metrics::Metrics>,
    /// True if webhooks may be delivered to the service's own host.
    pub allows_loopback: bool,
    /// All operations.
    pub operations: Vec<RegisteredOperation>,
}

impl Oncepay {
    /// The kinds of resources of the operations.
    pub fn resource_kinds(&self) -> Vec<&'static ResourceKind> {
        resource_kinds(&self.operations)
    }

    /// Version of the master key for new secrets. Errors: `secret_unavailable` before the key was checked.
    pub fn master_key_version(&self) -> Result<MasterKeyVersion, Failure> {
        self.vault.version().ok_or(Failure::SecretUnavailable)
    }

    /// The policy settings that only `operation` has.
    pub fn policy_settings(&self, operation: &str) -> &'static [PolicySetting] {
        let found = self.operations.iter().find(|known| known.descriptor.name == operation);
        found.map(|operation| operation.descriptor.policy_settings).unwrap_or_default()
    }

    /// The default policies of all operations.
    pub fn policy_defaults(&self) -> Vec<Defaults> {
        self.operations.iter().map(|operation| Defaults::of(&operation.descriptor)).collect()
    }
}

impl Host for Oncepay {
    type Error = Error;
    type Caller = Caller;

    /// The first part finds the keys of merchants, the second those of operators, who have the nil merchant's
    /// keys: it runs only if the first finds nothing.
    const PROOF_SQL: &'static str = "SELECT a.revoked_at IS NOT NULL AS is_revoked FROM api_keys a \
         WHERE a.merchant_id = asked.merchant_id AND a.key_sha256 = asked.key_sha256 \
         UNION ALL SELECT o.revoked_at IS NOT NULL FROM operator_keys o \
         WHERE asked.merchant_id = '00000000-0000-0000-0000-000000000000' AND o.key_sha256 = asked.key_sha256 \
         LIMIT 1";

    fn is_processor_available(&self) -> bool {
        self.processor.is_available()
    }

    fn disown(&self, proof: &[u8]) {
        self.known_keys.remove(proof);
    }

    fn reveal(&self, seal: &str) -> Option<SecretString> {
        let (purpose, rest) = seal.split_once('/')?;
        let (id, key) = match rest.split_once('/') {
            Some((id, key)) => (id, MasterKeyVersion(key.parse().ok()?)),
            None => (rest, MasterKeyVersion::FIRST),
        };
        self.vault.derive(purpose.parse().ok()?, id.parse().ok()?, key)
    }
}

/// Finds the resource kind `name` among those of `operations`.
pub fn resource_kind(operations: &[RegisteredOperation], name: &str) -> Option<&'static ResourceKind> {
    let mut kinds = operations.iter().filter_map(|operation| operation.descriptor.target.kind());
    kinds.find(|kind| kind.name == name)
}

/// The kinds of resources of `operations`, each once.
pub fn resource_kinds(operations: &[RegisteredOperation]) -> Vec<&'static ResourceKind> {
    let kind = |operation: &RegisteredOperation| operation.descriptor.target.kind();
    let mut kinds: Vec<_> = operations.iter().filter_map(kind).collect();
    kinds.sort_by_key(|kind| kind.name);
    kinds.dedup_by_key(|kind| kind.name);
    kinds
}

/// Name of the secret in a sealed reply: the one for `purpose` of the object `id`, under a master key. The
/// first key isn't named, since earlier releases know no other.
pub fn seal(purpose: Purpose, id: Uuid, key: MasterKeyVersion) -> String {
    match key {
        MasterKeyVersion::FIRST => format!("{purpose}/{id}"),
        MasterKeyVersion(key) => format!("{purpose}/{id}/{key}"),
    }
}

/// Identifies the processor call for one step of a request. `reference` is our id of the call's object.
pub fn processor_call(context: &Context<'_>, step: &str, reference: impl ToString) -> ProcessorCall {
    ProcessorCall {
        key: context.derived_key(step),
        merchant: context.merchant(),
        reference: reference.to_string(),
        attempt: context.attempt(),
        trace: context.trace().clone(),
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
