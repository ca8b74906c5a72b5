//! What a provider tells us by itself, in our words.

use crate::base::ids::{ChargeId, MerchantId, PayoutId, RefundId, SettlementId};
use crate::base::money::Money;

use super::Decline;

/// An event of a provider.
#[derive(Debug)]
pub struct Event {
    /// Name of its type, as sent; at most 100 characters.
    pub kind: String,
    /// What it says, if the type is one that we know.
    pub notice: Option<Notice>,
}

/// What an event says of one of a merchant's objects. Objects have our ids: each call hands the provider a reference.
#[derive(Debug)]
pub struct Notice {
    /// Whose object it is.
    pub merchant: MerchantId,
    /// What has happened to it.
    pub change: Change,
}

/// What has happened.
#[derive(Debug)]
pub enum Change {
    /// A pending charge is approved and, if that was asked for with the authorization, captured.
    ChargeSucceeded(ChargeId),
    /// A pending charge is declined.
    ChargeFailed(ChargeId, Decline),
    /// A refund that was made has come back.
    RefundFailed(RefundId),
    /// A payout that was on its way has arrived.
    PayoutPaid(PayoutId),
    /// A payout that was on its way has come back.
    PayoutFailed(PayoutId),
    /// What the provider owed us is in our bank account.
    SettlementPaid(SettlementId, Money),
    /// The customer contests a charge.
    DisputeOpened {
        /// Which charge.
        charge_id: ChargeId,
        /// The provider's name for the dispute.
        dispute: String,
        /// What the customer says.
        reason: Option<String>,
    },
    /// A dispute was decided for us.
    DisputeWon {
        /// Which charge.
        charge_id: ChargeId,
        /// The provider's name for the dispute.
        dispute: String,
    },
    /// A dispute was decided for the customer.
    DisputeLost {
        /// Which charge.
        charge_id: ChargeId,
        /// The provider's name for the dispute.
        dispute: String,
    },
}
