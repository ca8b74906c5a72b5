//! The processor's events and their effects on our books.

use chrono::{DateTime, Utc};
use diesel::PgConnection;
use serde_json::Value;
use uuid::Uuid;

use crate::base::ids::{ChargeId, MerchantId, PayoutId, RefundId, SettlementId};
use crate::error::Error;
use crate::payments::charges;
use crate::payments::disputes::{self, Verdict};
use crate::payments::notice::NoticeEffect;
use crate::payments::{payouts, refunds, settlements};
use crate::processor::{Change, Event, Messages, Notice};
use crate::web::fields::{Fields, parse_json};

use super::lost;

/// Outcome of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The event has changed something.
    Applied,
    /// Our books already matched the event.
    Unchanged,
    /// The event contradicts our books, which can't be changed to match. People have to find out who is
    /// right.
    Contradicted(String),
    /// The type of the event is unknown.
    Unknown,
    /// The object of the event doesn't exist yet.
    Parked(String),
    /// An operator has found that the event needs no action.
    Dismissed(String),
}

impl Outcome {
    /// Returns the outcome's word, as stored, shown and counted.
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

    /// Returns the reason for the outcome, if it isn't obvious.
    pub fn detail(&self) -> Option<&str> {
        match self {
            Self::Contradicted(detail) | Self::Parked(detail) | Self::Dismissed(detail) => Some(detail),
            Self::Applied | Self::Unchanged | Self::Unknown => None,
        }
    }
}

impl From<NoticeEffect> for Outcome {
    fn from(learned: NoticeEffect) -> Self {
        match learned {
            NoticeEffect::Applied => Self::Applied,
            NoticeEffect::AlreadyApplied => Self::Unchanged,
            NoticeEffect::Contradicts(detail) => Self::Contradicted(detail),
            NoticeEffect::TooEarly(detail) => Self::Parked(detail),
        }
    }
}

/// Reads the body of a message.
///
/// Errors: `validation_failed`.
pub fn read(messages: &dyn Messages, body: &Value) -> Result<Event, Error> {
    let members = Fields::members(body)?;
    messages.read(members).map_err(Error::ValidationFailed)
}

/// Reads a stored event.
///
/// Errors, in the order checked: `json_malformed`, `validation_failed`.
pub fn parse(messages: &dyn Messages, body: &[u8]) -> Result<Event, Error> {
    read(messages, &parse_json(body)?)
}

/// Brings our books into line with the event, in the caller's transaction.
///
/// Locks: the event's object, then ledger accounts as documented at the domain's functions.
pub fn apply(event: &Event, conn: &mut PgConnection, now: DateTime<Utc>) -> Result<Outcome, Error> {
    let Some(Notice { merchant, change }) = &event.notice else { return Ok(Outcome::Unknown) };
    let mut applied = apply_change(*merchant, change, conn, now, event.occurred_at);
    if matches!(applied, Err(Error::ChargeNotFound | Error::RefundNotFound | Error::PayoutNotFound)) {
        let mut change = change.clone();
        if let Some(object) = change.object_mut()
            && let Some(successor) = lost::successor(conn, *merchant, *object)?
        {
            *object = successor;
            applied = apply_change(*merchant, &change, conn, now, event.occurred_at);
        }
    }
    match applied {
        Ok(learned) => Ok(learned.into()),
        // Our request that makes the object hasn't been committed yet, or we don't know the object at all.
        Err(error @ (Error::ChargeNotFound | Error::RefundNotFound | Error::PayoutNotFound)) => {
            Ok(Outcome::Parked(error.to_string()))
        }
        Err(error) => Err(error),
    }
}

fn apply_change(
    merchant: MerchantId,
    change: &Change,
    conn: &mut PgConnection,
    now: DateTime<Utc>,
    occurred_at: Option<DateTime<Utc>>,
) -> Result<NoticeEffect, Error> {
    match change {
        Change::ChargeSucceeded(id, amount) => {
            charges::settle(conn, merchant, *id, charges::Decision::Approved(amount.clone()), now)
        }
        Change::ChargeFailed(id, decline) => {
            charges::settle(conn, merchant, *id, charges::Decision::Declined(decline.clone()), now)
        }
        Change::ChargeCaptured(id, amount) => {
            charges::captured_elsewhere(conn, merchant, *id, amount.as_ref(), now)
        }
        Change::RefundFailed(id, amount) => refunds::fail(conn, merchant, *id, amount.as_ref(), now),
        Change::PayoutPaid(id, amount) | Change::PayoutFailed(id, amount) => {
            let outcome = match change {
                Change::PayoutPaid(..) => payouts::Outcome::Paid,
                _ => payouts::Outcome::Failed,
            };
            let notice = payouts::Notice { outcome, amount: amount.as_ref(), occurred_at };
            payouts::settle(conn, merchant, *id, notice, now)
        }
        Change::SettlementPaid(id, money) => settlements::book(conn, merchant, *id, *money, now),
        Change::DisputeOpened { charge_id, dispute, amount, reason } => {
            let opening = disputes::Opening { dispute, amount: amount.as_ref(), reason: reason.clone() };
            disputes::open(conn, merchant, *charge_id, opening, now)
        }
        Change::DisputeWon { charge_id, dispute } | Change::DisputeLost { charge_id, dispute } => {
            let verdict = match change {
                Change::DisputeWon { .. } => Verdict::Won,
                _ => Verdict::Lost,
            };
            let decision = disputes::Decision { dispute, verdict, decided_at: occurred_at };
            disputes::close(conn, merchant, *charge_id, decision, now)
        }
    }
}

/// Returns the object of an event, and the merchant that owns it.
pub fn subject(event: &Event) -> Option<(MerchantId, Uuid)> {
    let Notice { merchant, change } = event.notice.as_ref()?;
    let object_id = match change {
        Change::ChargeSucceeded(ChargeId(id), _)
        | Change::ChargeFailed(ChargeId(id), _)
        | Change::ChargeCaptured(ChargeId(id), _)
        | Change::RefundFailed(RefundId(id), _)
        | Change::PayoutPaid(PayoutId(id), _)
        | Change::PayoutFailed(PayoutId(id), _)
        | Change::SettlementPaid(SettlementId(id), _)
        | Change::DisputeOpened { charge_id: ChargeId(id), .. }
        | Change::DisputeWon { charge_id: ChargeId(id), .. }
        | Change::DisputeLost { charge_id: ChargeId(id), .. } => *id,
    };
    Some((*merchant, object_id))
}

/// True if other events may have been waiting for this one.
pub fn is_awaited(event: &Event) -> bool {
    matches!(&event.notice, Some(Notice { change: Change::DisputeOpened { .. }, .. }))
}
