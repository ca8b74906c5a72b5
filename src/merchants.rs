//! Merchants: the tenants.

use diesel::prelude::*;

use crate::error::Error;
use crate::ids::MerchantId;
use crate::money::Pricing;
use crate::schema::merchants;

/// What the merchant pays per capture.
pub fn pricing(conn: &mut PgConnection, merchant: MerchantId) -> Result<Pricing, Error> {
    let (rate, fixed) =
        merchants::table.find(merchant).select((merchants::fee_rate, merchants::fee_fixed)).first(conn)?;
    Ok(Pricing { rate, fixed })
}
