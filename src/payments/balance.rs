//! A merchant's balance.

use actix_web::{HttpResponse, get, web};
use diesel::prelude::*;
use diesel::sql_types::{Numeric, Text, Uuid as SqlUuid};
use rust_decimal::Decimal;
use serde::Serialize;
use utoipa::ToSchema;

use crate::base::ids::MerchantId;
use crate::base::money::Currency;
use crate::error::Error;
use crate::storage::db::Db;
use crate::storage::shape;
use crate::storage::sql::{Statement, statement};
use crate::web::auth::AuthenticatedMerchant;
use crate::web::problems::problems;

/// Balance of a merchant, per currency.
#[derive(Debug, Serialize, ToSchema)]
pub struct Balance {
    /// One entry per currency with any movement, sorted by code.
    pub balances: Vec<CurrencyBalance>,
}

/// Balance of a merchant in one currency.
#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct CurrencyBalance {
    /// ISO 4217 code.
    #[schema(value_type = String, example = "USD")]
    pub currency: Currency,
    /// Available for payouts and refunds: captured, less fees, refunds, disputes and payouts, including those
    /// under way. Negative only after a dispute.
    #[schema(example = "118.20")]
    pub available: String,
    /// Authorized and not captured yet, or still processing, before fees. Not in any journal entry, since no
    /// money has moved.
    #[schema(example = "40.00")]
    pub pending: String,
    /// In payouts that haven't arrived yet.
    #[schema(example = "0.00")]
    pub in_transit: String,
}

const BALANCES: &str = "SELECT currency, sum(available), sum(pending), sum(in_transit) FROM ( \
     SELECT currency, \
         CASE kind WHEN 'merchant_payable' THEN ledger_spendable(merchant_id, id) ELSE 0 END AS available, \
         0 AS pending, \
         CASE kind WHEN 'payouts_in_transit' THEN -ledger_balance(merchant_id, id) ELSE 0 END AS in_transit \
     FROM ledger_accounts WHERE merchant_id = {} \
     UNION ALL \
     SELECT currency, 0, amount, 0 FROM charges WHERE merchant_id = {} AND status IN ('requires_capture', 'processing') \
     ) AS part GROUP BY currency ORDER BY currency";

/// Reads all balances of a merchant from one snapshot. Takes no locks.
pub fn balances(conn: &mut PgConnection, merchant: MerchantId) -> Result<Balance, Error> {
    let query = if shape::is_distributed() {
        statement(
            "SELECT currency, available, pending, in_transit FROM merchant_balances({}) ORDER BY currency",
        )
        .bind::<SqlUuid, _>(merchant)
    } else {
        statement(BALANCES).bind::<SqlUuid, _>(merchant).bind::<SqlUuid, _>(merchant)
    };
    let rows = Statement::<'_, (Text, Numeric, Numeric, Numeric)>::load::<(String, Decimal, Decimal, Decimal)>(
        query, conn,
    )?;

    let balances = rows.into_iter().map(|(code, available, pending, in_transit)| {
        let currency = Currency::stored(&code).map_err(Error::internal)?;
        Ok::<_, Error>(CurrencyBalance {
            currency,
            available: currency.format(available),
            pending: currency.format(pending),
            in_transit: currency.format(in_transit),
        })
    });
    Ok(Balance { balances: balances.collect::<Result<_, _>>()? })
}

problems!(GetProblems, reading:);

/// Retrieve the balance
///
/// Returns the merchant's balance in each currency, computed from the ledger's postings. A charge counts from
/// the moment that its request is answered.
#[utoipa::path(
    operation_id = "balance.get",
    tag = "Balance",
    responses(
        (status = 200, description = "The current balance.", body = Balance, example = json!({
            "balances": [{"currency": "USD", "available": "118.20", "pending": "40.00", "in_transit": "0.00"}]
        })),
        GetProblems
    ),
)]
#[get("/v1/balance")]
pub async fn get(db: web::Data<Db>, merchant: AuthenticatedMerchant) -> Result<HttpResponse, Error> {
    let balance = db.run_retrying(move |conn| balances(conn, merchant.0)).await?;
    Ok(HttpResponse::Ok().json(balance))
}
