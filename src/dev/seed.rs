//! A merchant and keys to start with.

use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::Timestamptz;
use rust_decimal::Decimal;

use crate::base::ids::MerchantId;
use crate::base::time;
use crate::storage::schema::{api_keys, merchant_pricing, merchants, operator_keys};
use crate::web::auth::{key_sha256, new_api_key, new_operator_key};

/// The secret keys of a merchant and an operator.
#[derive(Clone, Debug)]
pub struct Keys {
    /// API key of the merchant.
    pub api_key: String,
    /// Key of the operator.
    pub operator_key: String,
}

/// Creates a merchant that pays 2.9 % + 0.30, with one API key. `conn` must be the owner. Returns the
/// merchant and the key, which can't be read again.
pub fn create_merchant(conn: &mut PgConnection, name: &str) -> QueryResult<(MerchantId, String)> {
    conn.transaction(|conn| {
        let merchant = MerchantId::at(time::now());
        diesel::insert_into(merchants::table)
            .values((merchants::merchant_id.eq(merchant), merchants::name.eq(name)))
            .execute(conn)?;
        diesel::insert_into(merchant_pricing::table)
            .values((
                merchant_pricing::merchant_id.eq(merchant),
                // Not CURRENT_TIMESTAMP, which would be the time of the merchant's node.
                merchant_pricing::effective_at.eq(sql::<Timestamptz>("statement_timestamp()")),
                merchant_pricing::fee_rate.eq(Decimal::new(29, 3)),
                merchant_pricing::fee_fixed.eq(Decimal::new(30, 2)),
            ))
            .execute(conn)?;
        let key = create_api_key(conn, merchant)?;
        Ok((merchant, key))
    })
}

/// Makes sure that there are a merchant named `merchant_name` and valid keys. `known` are the keys of an
/// earlier start, which are kept if they still work; otherwise the merchant gets new ones.
pub fn ensure(conn: &mut PgConnection, merchant_name: &str, known: Option<Keys>) -> QueryResult<Keys> {
    conn.transaction(|conn| {
        let (known_api, known_operator) = known.map(|keys| (keys.api_key, keys.operator_key)).unzip();
        let api_key = match known_api {
            Some(key) if is_live_api_key(conn, &key)? => key,
            _ => {
                let merchant = merchants::table
                    .filter(merchants::name.eq(merchant_name))
                    .order(merchants::merchant_id)
                    .select(merchants::merchant_id)
                    .first::<MerchantId>(conn)
                    .optional()?;
                match merchant {
                    Some(merchant) => create_api_key(conn, merchant)?,
                    None => create_merchant(conn, merchant_name)?.1,
                }
            }
        };
        let operator_key = match known_operator {
            Some(key) if is_live_operator_key(conn, &key)? => key,
            _ => create_operator_key(conn)?,
        };
        Ok(Keys { api_key, operator_key })
    })
}

fn create_api_key(conn: &mut PgConnection, merchant: MerchantId) -> QueryResult<String> {
    let key = new_api_key(merchant);
    diesel::insert_into(api_keys::table)
        .values((
            api_keys::merchant_id.eq(merchant),
            api_keys::name.eq("first key"),
            api_keys::key_sha256.eq(key_sha256(&key)),
        ))
        .execute(conn)?;
    Ok(key)
}

/// Creates an operator key. `conn` must be the owner.
pub fn create_operator_key(conn: &mut PgConnection) -> QueryResult<String> {
    let key = new_operator_key();
    diesel::insert_into(operator_keys::table)
        .values((operator_keys::name.eq("first key"), operator_keys::key_sha256.eq(key_sha256(&key))))
        .execute(conn)?;
    Ok(key)
}

fn is_live_api_key(conn: &mut PgConnection, key: &str) -> QueryResult<bool> {
    diesel::select(diesel::dsl::exists(
        api_keys::table
            .filter(api_keys::key_sha256.eq(key_sha256(key)))
            .filter(api_keys::revoked_at.is_null()),
    ))
    .get_result(conn)
}

fn is_live_operator_key(conn: &mut PgConnection, key: &str) -> QueryResult<bool> {
    diesel::select(diesel::dsl::exists(
        operator_keys::table
            .filter(operator_keys::key_sha256.eq(key_sha256(key)))
            .filter(operator_keys::revoked_at.is_null()),
    ))
    .get_result(conn)
}
