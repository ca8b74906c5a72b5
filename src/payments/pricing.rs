//! The fee that a merchant pays per capture.

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{Numeric, Timestamptz, Uuid as SqlUuid};

use crate::base::ids::MerchantId;
use crate::base::money::Pricing;
use crate::error::Error;
use crate::storage::sql::statement;

/// SQL: the price per capture for the merchant of a new idempotency key at the time of the claim. Read it
/// with [`pricing_from_json`].
pub const PRICING: &str = "( \
    SELECT jsonb_build_array(p.fee_rate::text, p.fee_fixed::text) FROM merchant_pricing p \
    WHERE p.merchant_id = idempotency_keys.merchant_id AND p.effective_at <= idempotency_keys.created_at \
    ORDER BY p.effective_at DESC LIMIT 1)";

/// Reads a price that [`PRICING`] selected.
pub fn pricing_from_json(pricing: serde_json::Value) -> Result<Pricing, Error> {
    let (rate, fixed) = serde_json::from_value(pricing).map_err(Error::internal)?;
    Ok(Pricing { rate, fixed })
}

/// Finds the price per capture that holds for the merchant at a time.
pub fn pricing(conn: &mut PgConnection, merchant: MerchantId, at: DateTime<Utc>) -> Result<Pricing, Error> {
    let (rate, fixed) = statement::<(Numeric, Numeric)>(
        "SELECT fee_rate, fee_fixed FROM merchant_pricing \
         WHERE merchant_id = {} AND effective_at <= {} ORDER BY effective_at DESC LIMIT 1",
    )
    .bind::<SqlUuid, _>(merchant)
    .bind::<Timestamptz, _>(at)
    .get_result(conn)?;
    Ok(Pricing { rate, fixed })
}
