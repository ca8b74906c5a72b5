//! The parts of a request besides its parsed operation.

use crate::base::ids::MerchantId;
use crate::base::scope::HashedKey;
use crate::base::trace::TraceContext;

use super::fingerprint::RequestContent;
use super::key::IdempotencyKey;

/// Caller, key and exact content of a request.
#[derive(Clone, Debug)]
pub struct Envelope {
    /// The merchant in whose name the key is kept.
    pub merchant: MerchantId,
    /// The key.
    pub key: IdempotencyKey,
    /// Id of the request of this attempt.
    pub request_id: String,
    /// The span of this attempt's request.
    pub trace: TraceContext,
    /// The content that the key belongs to.
    pub content: RequestContent,
    /// SHA-256 of the caller's secret, which the look-up of the key checks (see
    /// [`Host::PROOF_SQL`](super::Host::PROOF_SQL)). `None` if the caller needs no authentication, as a
    /// signed message or the service itself.
    pub proof: Option<Vec<u8>>,
    /// Name of the operator, if one sent the request.
    pub actor: Option<String>,
    /// Id of the message, if the request is one.
    pub message_id: Option<String>,
}

impl HashedKey for Envelope {
    fn key_hash(&self) -> String {
        self.key.digest_for(self.merchant)
    }
}
