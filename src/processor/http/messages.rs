//! The processor's messages, signed as defined by [Standard Webhooks](https://www.standardwebhooks.com).

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use serde_json::{Map, Value};

use crate::base::money::{Currency, Money, PlainAmount};
use crate::base::signature::{self, Refusal, Secret, SignatureHeaders};
use crate::base::time;
use crate::error::FieldError;
use crate::processor::{Change, Decline, Event, EventAmount, Messages, Notice};
use crate::web::fields::{Fields, TEXT_MAX};

/// Limit of a settlement's amount, which must be below it.
const AMOUNT_LIMIT: u64 = 1_000_000_000_000;
/// Maximum number of characters in the name of a type.
const TYPE_LENGTH_MAX: usize = 100;

/// The messages of our own protocol. The sandbox has the same messages, though it sends none by itself.
#[derive(Debug, Default)]
pub struct StandardMessages {
    /// Secrets that may sign a message. There are several while the processor changes over from one to the
    /// next.
    secrets: Vec<Secret>,
}

impl StandardMessages {
    /// Makes a reader of messages that are signed with any of `secrets`. Without a secret, it refuses all.
    pub fn new(secrets: Vec<Secret>) -> Self {
        Self { secrets }
    }
}

/// Types of events that are read into a [`Notice`].
const TYPES: [&str; 10] = [
    "charge.succeeded",
    "charge.failed",
    "charge.captured",
    "refund.failed",
    "payout.paid",
    "payout.failed",
    "settlement.paid",
    "dispute.opened",
    "dispute.won",
    "dispute.lost",
];

impl Messages for StandardMessages {
    fn verify<'a>(
        &self,
        header: &dyn Fn(&str) -> Option<&'a str>,
        body: &[u8],
        now: DateTime<Utc>,
    ) -> Result<String, Refusal> {
        let sent = |name| header(name).unwrap_or_default();
        let signed = SignatureHeaders {
            id: sent(signature::ID),
            timestamp: sent(signature::TIMESTAMP),
            signature: sent(signature::SIGNATURE),
        };
        signature::verify(&self.secrets, signed, body, now)?;
        Ok(signed.id.to_owned())
    }

    fn read(&self, body: &Map<String, Value>) -> Result<Event, Vec<FieldError>> {
        Fields::read_object(body, |fields| {
            fields.allow_unknown();
            let kind = fields.text("type", TYPE_LENGTH_MAX)?;
            let notice = match TYPES.contains(&kind.as_str()) {
                true => Some(fields.object("data", |data| read_notice(&kind, data))?),
                false => None,
            };
            // It only orders decisions, so one that can't be read is no reason to refuse the event.
            let occurred_at = fields.lenient_text("timestamp", TEXT_MAX).and_then(|text| time::parse(&text));
            Some(Event { kind, notice, occurred_at })
        })
    }

    fn types(&self) -> &'static [&'static str] {
        &TYPES
    }
}

/// Reads `data`. The processor names our object by the reference that we gave it.
fn read_notice(kind: &str, data: &mut Fields<'_>) -> Option<Notice> {
    data.allow_unknown();
    let merchant = data.well_formed_id("merchant", "must be the id of a merchant (mer_…)");
    let change = match kind {
        "settlement.paid" => {
            let id = data.well_formed_id("id", "must be the id of a settlement (set_…)");
            let money = read_balance(data);
            id.zip(money).map(|(id, money)| Change::SettlementPaid(id, money))
        }
        "refund.failed" => {
            let id = data.well_formed_id("reference", "must be the id of a refund (re_…)");
            let amount = read_amount(data);
            id.map(|id| Change::RefundFailed(id, amount))
        }
        "payout.paid" | "payout.failed" => {
            let id = data.well_formed_id("reference", "must be the id of a payout (po_…)");
            let change = if kind == "payout.paid" { Change::PayoutPaid } else { Change::PayoutFailed };
            let amount = read_amount(data);
            id.map(|id| change(id, amount))
        }
        _ => read_change_of_charge(kind, data),
    };
    Some(Notice { merchant: merchant?, change: change? })
}

fn read_change_of_charge(kind: &str, data: &mut Fields<'_>) -> Option<Change> {
    let charge_id = data.well_formed_id("reference", "must be the id of a charge (ch_…)");
    match kind {
        "charge.succeeded" | "charge.captured" => {
            let change =
                if kind == "charge.captured" { Change::ChargeCaptured } else { Change::ChargeSucceeded };
            let amount = read_amount(data);
            charge_id.map(|id| change(id, amount))
        }
        "charge.failed" => {
            let decline_code = data.object_if_any("operation", |operation| {
                operation.allow_unknown();
                operation.lenient_text("decline_code", TEXT_MAX)
            });
            let decline = decline_code.as_deref().map_or_else(Decline::generic, Decline::new);
            Some(Change::ChargeFailed(charge_id?, decline))
        }
        _ => {
            let dispute = data.text("dispute", TEXT_MAX);
            // The reason only explains the dispute, so an invalid one doesn't refuse it.
            let reason = data.lenient_text("reason", TEXT_MAX);
            let amount = if kind == "dispute.opened" { read_amount(data) } else { None };
            let (charge_id, dispute) = (charge_id?, dispute?);
            Some(match kind {
                "dispute.won" => Change::DisputeWon { charge_id, dispute },
                "dispute.lost" => Change::DisputeLost { charge_id, dispute },
                _ => Change::DisputeOpened { charge_id, dispute, amount, reason },
            })
        }
    }
}

/// Reads the optional members `amount` and `currency`. An event that has them in another form is kept, for people to
/// look at.
fn read_amount(data: &mut Fields<'_>) -> Option<EventAmount> {
    let mut told = |name| data.raw(name).filter(|value| !value.is_null());
    let (amount, currency) = (told("amount"), told("currency"));
    if amount.is_none() && currency.is_none() {
        return None;
    }
    let read_amount = amount.and_then(Value::as_str).and_then(|text| PlainAmount::parse(text).ok());
    let read_currency = currency.and_then(Value::as_str).and_then(|code| code.parse::<Currency>().ok());
    Some(EventAmount {
        is_unreadable: read_amount.is_some() != amount.is_some()
            || read_currency.is_some() != currency.is_some(),
        amount: read_amount,
        currency: read_currency,
    })
}

/// Reads `amount` and `currency` of a settlement. Its amount may be zero or negative: fees and refunds can exceed
/// what was taken.
fn read_balance(data: &mut Fields<'_>) -> Option<Money> {
    let text = data.text("amount", TEXT_MAX);
    let currency =
        data.required_read("currency", |code| code.parse::<Currency>().map_err(|error| error.to_string()));
    let (text, currency) = (text?, currency?);
    let digits = text.strip_prefix('-').unwrap_or(&text);
    let is_plain =
        digits.len() <= TEXT_MAX && digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let amount = Decimal::from_str_exact(&text).ok().filter(|_| is_plain);
    let amount = amount
        .map(|amount| amount.normalize())
        .filter(|amount| amount.scale() <= currency.scale() && amount.abs() < Decimal::from(AMOUNT_LIMIT));
    if amount.is_none() {
        let scale = currency.scale();
        data.error("amount", format!("must be a decimal string with at most {scale} decimals in {currency}"));
    }
    amount.map(|amount| Money::from_stored(amount, currency))
}
