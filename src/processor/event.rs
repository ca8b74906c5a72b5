//! Events that a provider sends, in our terms.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::base::ids::{ChargeId, MerchantId, PayoutId, RefundId, SettlementId};
use crate::base::money::{Currency, Money, PlainAmount};

use super::Decline;

/// An event of a provider.
#[derive(Debug)]
pub struct Event {
    /// Name of the type, as sent. At most 100 characters.
    pub kind: String,
    /// Content of the event, if the type is known.
    pub notice: Option<Notice>,
    /// Time at which it happened, by the provider's clock, if the provider tells.
    pub occurred_at: Option<DateTime<Utc>>,
}

/// The amount in an event, as far as the event tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventAmount {
    /// The amount. `None` stands for all of the object.
    pub amount: Option<PlainAmount>,
    /// The currency. `None` stands for that of the object.
    pub currency: Option<Currency>,
    /// True if the event has an amount or a currency that can't be read, so that it can't be applied.
    pub is_unreadable: bool,
}

impl EventAmount {
    /// The amount in the currency of `all`, which stands for an amount that isn't told; or a sentence that says why
    /// the event doesn't fit.
    pub fn of(&self, all: Money) -> Result<Money, String> {
        let currency = all.currency();
        if self.is_unreadable {
            return Err("The amount or the currency of the event can't be read.".to_owned());
        }
        if let Some(other) = self.currency.filter(|other| *other != currency) {
            return Err(format!("The event is in {other}, and the object in {currency}."));
        }
        match &self.amount {
            None => Ok(all),
            Some(amount) => {
                amount.in_currency(currency).map_err(|error| format!("The amount of the event {error}."))
            }
        }
    }
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
#[derive(Clone, Debug)]
pub enum Change {
    /// A pending charge is approved and, if the authorization requested that, captured.
    ChargeSucceeded(ChargeId, Option<EventAmount>),
    /// A pending charge is declined.
    ChargeFailed(ChargeId, Decline),
    /// An authorization was captured at the provider without a call of ours: this amount, or all of it.
    ChargeCaptured(ChargeId, Option<EventAmount>),
    /// A refund has come back.
    RefundFailed(RefundId, Option<EventAmount>),
    /// A payout has arrived.
    PayoutPaid(PayoutId, Option<EventAmount>),
    /// A payout has come back.
    PayoutFailed(PayoutId, Option<EventAmount>),
    /// Money that the provider owed us has arrived in our bank account.
    SettlementPaid(SettlementId, Money),
    /// The customer contests a charge.
    DisputeOpened {
        /// Id of the charge.
        charge_id: ChargeId,
        /// The provider's id of the dispute.
        dispute: String,
        /// The contested amount. `None`: all of the charge that isn't refunded, or, if that is nothing, all of it.
        amount: Option<EventAmount>,
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

impl Change {
    /// The id of the object that the change is about, to be replaced by another of its kind. `None` if no call of ours
    /// made the object.
    pub fn object_mut(&mut self) -> Option<&mut Uuid> {
        match self {
            Self::ChargeSucceeded(ChargeId(id), _)
            | Self::ChargeFailed(ChargeId(id), _)
            | Self::ChargeCaptured(ChargeId(id), _)
            | Self::DisputeOpened { charge_id: ChargeId(id), .. }
            | Self::DisputeWon { charge_id: ChargeId(id), .. }
            | Self::DisputeLost { charge_id: ChargeId(id), .. }
            | Self::RefundFailed(RefundId(id), _)
            | Self::PayoutPaid(PayoutId(id), _)
            | Self::PayoutFailed(PayoutId(id), _) => Some(id),
            Self::SettlementPaid(..) => None,
        }
    }
}
