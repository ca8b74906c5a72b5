//! The acquirer's events: what each says, and what follows from it.

use chrono::{DateTime, Utc};
use diesel::PgConnection;
use uuid::Uuid;

use crate::base::ids::{ChargeId, MerchantId, PayoutId, RefundId, SettlementId};
use crate::base::money::Money;
use crate::error::Error;
use crate::payments::charges;
use crate::payments::disputes::{self, Verdict};
use crate::payments::notice::Learned;
use crate::payments::{payouts, refunds, settlements};
use crate::processor::Decline;
use crate::web::fields::{Fields, TEXT_MAX, parse_json};

/// Longest name of a type.
const TYPE_LENGTH_MAX: usize = 100;

/// An event of the acquirer.
#[derive(Debug)]
pub struct AcquirerEvent {
    /// Name of its type, as sent.
    pub kind: String,
    /// What it says, if we know the type.
    pub news: Option<News>,
}

/// What an event says of one of a merchant's objects.
#[derive(Debug)]
pub struct News {
    /// Whose.
    pub merchant: MerchantId,
    /// What.
    pub what: What,
}

/// What has happened.
#[derive(Debug)]
pub enum What {
    /// `charge.succeeded`, `charge.failed`: a charge that was pending is decided.
    Charge(ChargeId, charges::Settlement),
    /// `refund.failed`: a refund that was made has come back.
    RefundFailed(RefundId),
    /// `payout.paid`, `payout.failed`: a payout that was on its way has arrived or has come back.
    Payout(PayoutId, payouts::Settlement),
    /// `settlement.paid`: what the acquirer owed us is in our bank account.
    Settlement(SettlementId, Money),
    /// `dispute.opened`: the customer contests a charge.
    DisputeOpened {
        /// Which charge.
        charge_id: ChargeId,
        /// The acquirer's name for the dispute.
        dispute: String,
        /// What the customer says.
        reason: Option<String>,
    },
    /// `dispute.won`, `dispute.lost`: that has come to an end.
    DisputeClosed {
        /// Which charge.
        charge_id: ChargeId,
        /// The acquirer's name for the dispute.
        dispute: String,
        /// Which.
        verdict: Verdict,
    },
}

/// What has come of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It has changed something.
    Applied,
    /// Things were as it says already.
    Unchanged,
    /// Our books say otherwise and can't be changed to what it says. For people to find out who is right.
    Contradicted(String),
    /// We don't know what it says.
    Unknown,
    /// What it's about isn't there yet.
    Parked(String),
    /// An operator has found that nothing is to be done about it.
    Dismissed(String),
}

impl Outcome {
    /// As it's stored, shown and counted.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Unchanged => "unchanged",
            Self::Contradicted(_) => "contradicted",
            Self::Unknown => "unknown",
            Self::Parked(_) => "parked",
            Self::Dismissed(_) => "dismissed",
        }
    }

    /// Why it's so, where that isn't obvious.
    pub fn detail(&self) -> Option<&str> {
        match self {
            Self::Contradicted(detail) | Self::Parked(detail) | Self::Dismissed(detail) => Some(detail),
            Self::Applied | Self::Unchanged | Self::Unknown => None,
        }
    }
}

impl From<Learned> for Outcome {
    fn from(learned: Learned) -> Self {
        match learned {
            Learned::Applied => Self::Applied,
            Learned::Unchanged => Self::Unchanged,
            Learned::Contradicted(detail) => Self::Contradicted(detail),
            Learned::TooEarly(detail) => Self::Parked(detail),
        }
    }
}

impl AcquirerEvent {
    /// The types that say something to us.
    pub const KINDS: [&str; 9] = [
        "charge.succeeded",
        "charge.failed",
        "refund.failed",
        "payout.paid",
        "payout.failed",
        "settlement.paid",
        "dispute.opened",
        "dispute.won",
        "dispute.lost",
    ];

    /// Reads an event from its members. What we don't know is passed over: the acquirer may add to its events.
    pub fn read(fields: &mut Fields<'_>) -> Option<Self> {
        fields.allow_unknown();
        let kind = fields.text("type", TYPE_LENGTH_MAX)?;
        let news = match Self::KINDS.contains(&kind.as_str()) {
            true => Some(fields.object("data", |data| News::read(&kind, data))?),
            false => None,
        };
        Some(Self { kind, news })
    }

    /// Reads a stored one.
    pub fn parse(body: &[u8]) -> Result<Self, Error> {
        Fields::read(&parse_json(body)?, Self::read)
    }

    /// Makes our books say what the event says, in the caller's transaction.
    ///
    /// Locks: what it's about, then ledger accounts as the domain's functions say.
    pub fn apply(&self, conn: &mut PgConnection, now: DateTime<Utc>) -> Result<Outcome, Error> {
        match &self.news {
            Some(news) => news.apply(conn, now),
            None => Ok(Outcome::Unknown),
        }
    }

    /// Whose object it's about, and which.
    pub fn subject(&self) -> Option<(MerchantId, Uuid)> {
        self.news.as_ref().map(|news| (news.merchant, news.what.object_id()))
    }

    /// Whether others may have been waiting for it.
    pub fn is_awaited(&self) -> bool {
        matches!(&self.news, Some(News { what: What::DisputeOpened { .. }, .. }))
    }
}

impl What {
    fn object_id(&self) -> Uuid {
        match self {
            Self::Charge(ChargeId(id), _)
            | Self::RefundFailed(RefundId(id))
            | Self::Payout(PayoutId(id), _)
            | Self::Settlement(SettlementId(id), _)
            | Self::DisputeOpened { charge_id: ChargeId(id), .. }
            | Self::DisputeClosed { charge_id: ChargeId(id), .. } => *id,
        }
    }
}

impl News {
    /// Reads `data`. The acquirer calls our object by the reference that we gave it.
    fn read(kind: &str, data: &mut Fields<'_>) -> Option<Self> {
        data.allow_unknown();
        let merchant = data.well_formed_id("merchant", "must be the id of a merchant (mer_…)");
        let what = match kind {
            "settlement.paid" => {
                let id = data.well_formed_id("id", "must be the id of a settlement (set_…)");
                let money = data.money();
                id.zip(money).map(|(id, money)| What::Settlement(id, money))
            }
            "refund.failed" => {
                data.well_formed_id("reference", "must be the id of a refund (re_…)").map(What::RefundFailed)
            }
            "payout.paid" | "payout.failed" => {
                let settlement = if kind == "payout.paid" {
                    payouts::Settlement::Paid
                } else {
                    payouts::Settlement::Failed
                };
                let id = data.well_formed_id("reference", "must be the id of a payout (po_…)");
                id.map(|id| What::Payout(id, settlement))
            }
            _ => Self::read_of_charge(kind, data),
        };
        Some(Self { merchant: merchant?, what: what? })
    }

    fn read_of_charge(kind: &str, data: &mut Fields<'_>) -> Option<What> {
        let charge_id = data.well_formed_id("reference", "must be the id of a charge (ch_…)");
        match kind {
            "charge.succeeded" => Some(What::Charge(charge_id?, charges::Settlement::Approved)),
            "charge.failed" => {
                let decline_code = data.object_if_any("operation", |operation| {
                    operation.allow_unknown();
                    operation.lenient_text("decline_code", TEXT_MAX)
                });
                let decline = match decline_code.as_deref() {
                    Some("insufficient_funds") => Decline::InsufficientFunds,
                    _ => Decline::Generic,
                };
                Some(What::Charge(charge_id?, charges::Settlement::Declined(decline)))
            }
            _ => {
                let dispute = data.text("dispute", TEXT_MAX);
                // It explains, and decides nothing: no reason to refuse the dispute.
                let reason = data.lenient_text("reason", TEXT_MAX);
                let (charge_id, dispute) = (charge_id?, dispute?);
                let closed = |verdict| What::DisputeClosed { charge_id, dispute: dispute.clone(), verdict };
                Some(match kind {
                    "dispute.won" => closed(Verdict::Won),
                    "dispute.lost" => closed(Verdict::Lost),
                    _ => What::DisputeOpened { charge_id, dispute, reason },
                })
            }
        }
    }

    fn apply(&self, conn: &mut PgConnection, now: DateTime<Utc>) -> Result<Outcome, Error> {
        let merchant = self.merchant;
        let learned = match &self.what {
            What::Charge(id, settlement) => charges::settle(conn, merchant, *id, *settlement, now),
            What::RefundFailed(id) => refunds::fail(conn, merchant, *id, now),
            What::Payout(id, settlement) => payouts::settle(conn, merchant, *id, *settlement, now),
            What::Settlement(id, money) => settlements::book(conn, merchant, *id, *money, now),
            What::DisputeOpened { charge_id, dispute, reason } => {
                disputes::open(conn, merchant, *charge_id, dispute, reason.clone(), now)
            }
            What::DisputeClosed { charge_id, dispute, verdict } => {
                disputes::close(conn, merchant, *charge_id, dispute, *verdict, now)
            }
        };
        match learned {
            Ok(learned) => Ok(learned.into()),
            // Made by a request of ours that hasn't been committed yet, or that we don't know of at all.
            Err(error @ (Error::ChargeNotFound | Error::RefundNotFound | Error::PayoutNotFound)) => {
                Ok(Outcome::Parked(error.to_string()))
            }
            Err(error) => Err(error),
        }
    }
}
