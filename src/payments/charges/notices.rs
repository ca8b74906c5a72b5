//! What the processor's notices change about charges.

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::Uuid as SqlUuid;
use uuid::Uuid;

use crate::base::ids::{ChargeId, MerchantId};
use crate::base::money::Money;
use crate::error::Error;
use crate::events::EventType;
use crate::payments::notice::NoticeEffect;
use crate::processor::{Decline, EventAmount};
use crate::storage::sql::statement;

use super::{ChargeRow, ChargeStatus, PARTIAL_APPROVAL};

/// The processor's later decision on a charge that was `processing`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Approved and, if the charge was to be captured at once, captured: this amount, or all of it.
    Approved(Option<EventAmount>),
    /// Refused for good.
    Declined(Decline),
}

/// Finds the charge that relies on the authorization of another one, which was lost: after a failover or a restore, a
/// retry whose claim was lost gets a new id, and from the processor what it had done for the first. The processor goes
/// on naming the first. Known as soon as the reconciliation has read the processor's books.
pub fn successor(
    conn: &mut PgConnection,
    merchant: MerchantId,
    lost: ChargeId,
) -> Result<Option<ChargeId>, Error> {
    let found = statement::<SqlUuid>(
        "SELECT c.id FROM acquirer_operations o \
         JOIN charges c ON c.merchant_id = o.merchant_id AND c.authorization_id = o.authorization_id AND c.id > o.object_id \
         WHERE o.merchant_id = {} AND o.object_id = {} AND o.kind = 'authorize' LIMIT 1",
    )
    .bind::<SqlUuid, _>(merchant)
    .bind::<SqlUuid, _>(lost)
    .get_result::<Uuid>(conn)
    .optional()?;
    Ok(found.map(ChargeId))
}

/// The amount that an event tells of a charge of `all`, or a sentence that says why it can't be.
fn part_of(all: Money, told: Option<&EventAmount>) -> Result<Money, String> {
    let part = told.map_or(Ok(all), |told| told.of(all))?;
    if part.amount() > all.amount() {
        return Err(format!("The charge is of {all}, and the event of {part}."));
    }
    Ok(part)
}

/// Settles a charge that is `processing`, on the processor's decision.
///
/// Errors: `charge_not_found`.
///
/// Locks: the charge.
pub fn settle(
    conn: &mut PgConnection,
    merchant: MerchantId,
    id: ChargeId,
    decision: Decision,
    now: DateTime<Utc>,
) -> Result<NoticeEffect, Error> {
    let mut row = ChargeRow::lock(conn, merchant, id)?;
    let status = row.status()?;
    if status != ChargeStatus::Processing {
        let was_declined = status == ChargeStatus::Failed;
        let is_same = was_declined == matches!(decision, Decision::Declined(_));
        return Ok(if is_same {
            NoticeEffect::AlreadyApplied
        } else {
            NoticeEffect::contradicts("charge", status.as_str())
        });
    }
    let all = row.money(row.amount)?;
    let told = match &decision {
        Decision::Approved(told) => told.as_ref(),
        Decision::Declined(_) => None,
    };
    let approved = match part_of(all, told) {
        Ok(approved) => approved,
        Err(sentence) => return Ok(NoticeEffect::Contradicts(sentence)),
    };
    let mut entry = None;
    let event = match decision {
        Decision::Declined(decline) => {
            row.decline(&decline);
            EventType::ChargeFailed
        }
        Decision::Approved(_) if row.capture => {
            entry = Some(row.capture(conn, approved, now)?);
            EventType::ChargeSucceeded
        }
        // Less than all of it can't be captured in full later, and a smaller authorization isn't what was asked for. The
        // reconciliation voids it.
        Decision::Approved(_) if approved.amount() < all.amount() => {
            row.decline(&Decline::new(PARTIAL_APPROVAL));
            EventType::ChargeFailed
        }
        Decision::Approved(_) => {
            row.set_status(ChargeStatus::RequiresCapture);
            EventType::ChargeAuthorized
        }
    };
    let (changes, _) = row.told_changes(event)?;
    changes.post(&entry).write(conn)?;
    Ok(NoticeEffect::Applied)
}

/// Books a capture that wasn't ours: somebody has captured the authorization at the processor, which refuses any
/// other capture of it and any void. Without that, the customer's money would be in nobody's books.
///
/// Errors: `charge_not_found`.
///
/// Locks: the charge, then the accounts of its journal entry.
pub fn captured_elsewhere(
    conn: &mut PgConnection,
    merchant: MerchantId,
    id: ChargeId,
    told: Option<&EventAmount>,
    now: DateTime<Utc>,
) -> Result<NoticeEffect, Error> {
    let mut row = ChargeRow::lock(conn, merchant, id)?;
    let status = row.status()?;
    match status {
        // A capture or cancellation of ours is under way. It may turn out to be the one that the event is about.
        ChargeStatus::RequiresCapture if row.in_flight.is_some() => {
            return Ok(NoticeEffect::too_early("charge", "being captured or canceled"));
        }
        ChargeStatus::RequiresCapture => {}
        ChargeStatus::Processing => return Ok(NoticeEffect::too_early("charge", status.as_str())),
        ChargeStatus::Failed | ChargeStatus::Canceled => {
            return Ok(NoticeEffect::contradicts("charge", status.as_str()));
        }
        ChargeStatus::Succeeded
        | ChargeStatus::PartiallyRefunded
        | ChargeStatus::Refunded
        | ChargeStatus::Disputed => {
            let captured = row.money(row.amount_captured)?;
            let other = NoticeEffect::of_other_amount(told, captured);
            return Ok(other.unwrap_or(NoticeEffect::AlreadyApplied));
        }
    }
    let captured = match part_of(row.money(row.amount)?, told) {
        Ok(captured) => captured,
        Err(sentence) => return Ok(NoticeEffect::Contradicts(sentence)),
    };
    let entry = row.capture(conn, captured, now)?;
    let (changes, _) = row.told_changes(EventType::ChargeCaptured)?;
    changes.post(&entry).write(conn)?;
    Ok(NoticeEffect::Applied)
}
