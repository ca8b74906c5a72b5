//! Differences between our books and the processor's.

use std::fmt;
use std::time::Duration;

use diesel::prelude::*;
use diesel::sql_types::{Array, Bool, Double, Nullable, Numeric, Text, Uuid as SqlUuid};
use rust_decimal::Decimal;
use serde_json::{Value, json};
use uuid::Uuid;

use super::totals::{NotCompared, Totals};
use crate::base::ids::MerchantId;
use crate::base::money::Currency;
use crate::base::time::Timestamp;
use crate::error::Error;
use crate::host;
use crate::storage::shape;
use crate::storage::sql::statement;

pub(super) mod by_merchant;

/// Name of an operator's acceptance of a difference, in the record of actions.
macro_rules! acceptance {
    () => {
        "reconciliation.accept"
    };
}

/// SQL condition: no operator has accepted the difference `d`, a row of `acquirer_differences`. A difference without an
/// operation of the processor can't be accepted.
macro_rules! is_open {
    () => {
        concat!(
            "NOT EXISTS (SELECT FROM operator_actions a \
             WHERE a.subject = d.difference || ' ' || d.operation_id AND a.action = '",
            $crate::inbound::differences::acceptance!(),
            "')"
        )
    };
}
pub(crate) use {acceptance, is_open};

/// Result of a comparison.
#[derive(Debug)]
pub struct Report {
    /// Totals per currency and kind of operation, of what is compared.
    pub totals: Vec<Totals>,
    /// What isn't compared.
    pub not_compared: NotCompared,
    /// All differences.
    pub differences: Vec<Difference>,
}

impl Report {
    /// True if every difference has been dealt with.
    pub fn is_settled(&self) -> bool {
        self.differences.iter().all(|difference| difference.is_voided)
    }

    /// The report as JSON. Amounts are texts at the scale of their currency.
    pub fn to_json(&self) -> Value {
        let totals = self.totals.iter().map(|total| {
            let side = |count: i64, amount: Decimal| {
                json!({"count": count, "amount": format_amount(amount, &total.currency)})
            };
            json!({
                "currency": total.currency,
                "kind": total.kind,
                "ours": side(total.our_count, total.our_amount),
                "processor": side(total.their_count, total.their_amount),
            })
        });
        let rest = &self.not_compared;
        json!({
            "agree": self.is_settled(),
            "totals": totals.collect::<Vec<_>>(),
            "not_compared": {
                "ours_earlier": rest.earlier,
                "since": Timestamp(rest.since),
                "ours": rest.our_rest,
                "processor": rest.their_rest,
            },
            "differences": self.differences.iter().map(Difference::to_json).collect::<Vec<_>>(),
        })
    }
}

/// One difference.
#[derive(Clone, Debug, QueryableByName)]
pub struct Difference {
    /// `missing_at_acquirer`, `missing_here`, `orphaned_authorization`, `amount_differs` or `duplicate`.
    #[diesel(sql_type = Text)]
    pub difference: String,
    /// `authorize`, `capture`, `void`, `refund` or `payout`.
    #[diesel(sql_type = Text)]
    pub kind: String,
    /// Id of the merchant, if there is one.
    #[diesel(sql_type = Nullable<SqlUuid>)]
    pub merchant_id: Option<Uuid>,
    /// Id of our object, or the processor's reference to one.
    #[diesel(sql_type = Text)]
    pub reference: String,
    /// Id of the processor's operation.
    #[diesel(sql_type = Nullable<Text>)]
    pub operation_id: Option<String>,
    /// Id of the processor's authorization.
    #[diesel(sql_type = Nullable<Text>)]
    pub authorization_id: Option<String>,
    /// ISO 4217 code; voids have none.
    #[diesel(sql_type = Nullable<Text>)]
    pub currency: Option<String>,
    /// Amount in our books.
    #[diesel(sql_type = Nullable<Numeric>)]
    pub ours: Option<Decimal>,
    /// Amount in the processor's books.
    #[diesel(sql_type = Nullable<Numeric>)]
    pub theirs: Option<Decimal>,
    /// Seconds since we learned of the processor's operation.
    #[diesel(sql_type = Nullable<Double>)]
    pub known_for_s: Option<f64>,
    /// True if a charge of ours relies on the authorization, though under another reference: after its claim
    /// was lost, a request gets a new id, and what the processor had done for the first.
    #[diesel(sql_type = Bool)]
    pub is_relied_on: bool,
    /// True if the difference was an orphan that has been voided.
    #[diesel(sql_type = Bool)]
    pub is_voided: bool,
}

impl Difference {
    fn to_json(&self) -> Value {
        let amount = |amount: Option<Decimal>| {
            amount.map(|amount| format_amount(amount, self.currency.as_deref().unwrap_or_default()))
        };
        json!({
            "difference": self.difference,
            "kind": self.kind,
            "merchant_id": self.merchant_id.map(MerchantId),
            "reference": self.reference,
            "operation_id": self.operation_id,
            "authorization_id": self.authorization_id,
            "currency": self.currency,
            "ours": amount(self.ours),
            "processor": amount(self.theirs),
            "voided": self.is_voided,
        })
    }

    /// True if the difference is an authorization that nobody relies on, and that has been known for `age`.
    pub fn is_orphan_since(&self, age: Duration) -> bool {
        self.difference == "orphaned_authorization"
            && !self.is_relied_on
            && self.known_for_s.is_some_and(|known| known >= age.as_secs_f64())
    }
}

/// Finds all differences that nobody has accepted. `grace_s` is the age at which ours are missed, in seconds.
pub fn load(conn: &mut PgConnection, grace_s: f64) -> Result<Vec<Difference>, Error> {
    if shape::is_distributed() {
        return by_merchant::load(conn, grace_s);
    }
    let query = concat!(
        "SELECT *, EXISTS ( \
                 SELECT FROM charges c \
                 WHERE c.merchant_id = d.merchant_id AND c.authorization_id = d.authorization_id \
                 AND c.status <> 'failed') AS is_relied_on, \
             false AS is_voided, extract(epoch FROM clock_timestamp() - first_read_at)::double precision AS known_for_s \
         FROM acquirer_differences(make_interval(secs => $1)) d WHERE ",
        is_open!(),
        " ORDER BY currency, difference, kind, reference",
    );
    Ok(diesel::sql_query(query).bind::<Double, _>(grace_s).load(conn)?)
}

/// Records that an operator has dealt with the differences in these operations of the processor, so that they are none
/// from now on, neither for the reconciliation nor for the audit. An accepted orphan isn't voided. The books stay as
/// they are.
///
/// Returns those of `operations` in which the books don't differ. If there are any, nothing is recorded.
pub fn accept(
    conn: &mut PgConnection,
    operator: &str,
    operations: &[String],
    reason: &str,
) -> Result<Vec<String>, Error> {
    let found = if shape::is_distributed() {
        by_merchant::find(conn, operations)?
    } else {
        statement::<(Text, Text)>(concat!(
            "SELECT d.difference, d.operation_id FROM acquirer_differences('0') d WHERE d.operation_id = ANY ({}) AND ",
            is_open!(),
        ))
        .bind::<Array<Text>, _>(operations.to_vec())
        .load::<(String, String)>(conn)?
    };
    let is_found = |operation: &&String| found.iter().any(|(_, id)| id == *operation);
    let others: Vec<_> = operations.iter().filter(|operation| !is_found(operation)).cloned().collect();
    if others.is_empty() {
        for (difference, id) in found {
            host::record_action(conn, operator, acceptance!(), &format!("{difference} {id}"), Some(reason))?;
        }
    }
    Ok(others)
}

/// Names all differences that nobody has accepted, in a distributed database: for the audit.
pub(crate) fn names(conn: &mut PgConnection, grace_s: f64) -> Result<Vec<String>, Error> {
    let found = by_merchant::load(conn, grace_s)?;
    Ok(found.iter().map(|found| format!("{} {}", found.difference, found.reference)).collect())
}

/// Formats `amount` at the currency's scale. The processor's text needn't be the code of any.
fn format_amount(amount: Decimal, currency: &str) -> String {
    Currency::stored(currency).map_or_else(|_| amount.to_string(), |currency| currency.format(amount))
}

impl fmt::Display for Report {
    /// Prints tables for people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<8} {:<10} {:>8} {:>18}   {:>9} {:>18}",
            "currency", "kind", "ours", "amount", "processor", "amount"
        )?;
        for total in &self.totals {
            writeln!(
                f,
                "{:<8} {:<10} {:>8} {:>18}   {:>9} {:>18}",
                total.currency,
                total.kind,
                total.our_count,
                format_amount(total.our_amount, &total.currency),
                total.their_count,
                format_amount(total.their_amount, &total.currency),
            )?;
        }
        self.not_compared.fmt(f)?;
        for difference in &self.differences {
            let currency = difference.currency.as_deref().unwrap_or("no currency");
            let amount = |amount: Option<Decimal>| {
                amount.map_or("nothing".to_owned(), |amount| format_amount(amount, currency))
            };
            writeln!(
                f,
                "{}: {} of {} ({}): {} here, {} there, {}{}",
                difference.difference,
                difference.kind,
                difference.reference,
                difference.operation_id.as_deref().unwrap_or("no operation"),
                amount(difference.ours),
                amount(difference.theirs),
                currency,
                if difference.is_voided { "; voided now" } else { "" },
            )?;
        }
        let left = self.differences.iter().filter(|difference| !difference.is_voided).count();
        match left {
            0 => writeln!(f, "Both sides agree."),
            1 => writeln!(f, "1 difference."),
            _ => writeln!(f, "{left} differences."),
        }
    }
}
