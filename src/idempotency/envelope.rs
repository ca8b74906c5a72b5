//! Everything about a request but its parsed operation.

use crate::base::ids::MerchantId;

use super::fingerprint::RequestContent;
use super::key::IdempotencyKey;

/// Who asks, under which key, and exactly what.
#[derive(Clone, Debug)]
pub struct Envelope {
    /// The merchant in whose name the key is kept.
    pub merchant: MerchantId,
    /// The key.
    pub key: IdempotencyKey,
    /// Id of the request of this attempt.
    pub request_id: String,
    /// The content for which alone the key may be used.
    pub content: RequestContent,
    /// SHA-256 of the caller's secret, which the look-up of the key finds valid or not (see
    /// [`Host::PROOF_SQL`](super::Host::PROOF_SQL)). `None` where the caller is authenticated already or needn't be.
    pub proof: Option<Vec<u8>>,
    /// Name of the operator who asks, if one does.
    pub actor: Option<String>,
    /// Id of the message that is the request, if it is one.
    pub message_id: Option<String>,
}
