//! Events that a provider sends, in our terms.

use crate::base::ids::{ChargeId, MerchantId, PayoutId, RefundId, SettlementId};
use crate::base::money::Money;

use super::Decline;

/// An event of a provider.
#[derive(Debug)]
pub struct Event {
    /// Name of the type, as sent. At most 100 characters.
    pub kind: String,
    /// Content of the event, if the type is known.
    pub notice: Option<Notice>,
}

/// The content of an event: a change to one of a merchant's objects. Objects have our ids, since each call
/// hands the provider a reference.
#[derive(Debug)]
pub struct Notice {
    /// Merchant that owns the object.
    pub merchant: MerchantId,
    /// Change to the object.
    pub change: Change,
}

/// A change to an object.
#[derive(Debug)]
pub enum Change {
    /// A pending charge is approved and, if the authorization requested that, captured.
    ChargeSucceeded(ChargeId),
    /// A pending charge is declined.
    ChargeFailed(ChargeId, Decline),
    /// A refund has come back.
    RefundFailed(RefundId),
    /// A payout has arrived.
    PayoutPaid(PayoutId),
    /// A payout has come back.
    PayoutFailed(PayoutId),
    /// Money that the provider owed us has arrived in our bank account.
    SettlementPaid(SettlementId, Money),
    /// The customer contests a charge.
    DisputeOpened {
        /// Id of the charge.
        charge_id: ChargeId,
        /// The provider's id of the dispute.
        dispute: String,
        /// The customer's reason.
        reason: Option<String>,
    },
    /// A dispute was decided for us.
    DisputeWon {
        /// Id of the charge.
        charge_id: ChargeId,
        /// The provider's id of the dispute.
        dispute: String,
    },
    /// A dispute was decided for the customer.
    DisputeLost {
        /// Id of the charge.
        charge_id: ChargeId,
        /// The provider's id of the dispute.
        dispute: String,
    },
}
