//! What happened, recorded in the transaction in which it happened.
//!
//! An event is written with the change that it tells of, so that both are there or neither is.

use diesel::prelude::*;
use diesel::sql_types::{Jsonb, Text, Uuid as SqlUuid};
use serde::Serialize;

use crate::error::Error;
use crate::ids::{EventId, MerchantId};
use crate::sql::statement;

/// Records an event of type `kind` (such as `charge.succeeded`) about `object` as it is now.
pub fn record(
    conn: &mut PgConnection,
    merchant: MerchantId,
    kind: &'static str,
    object: &impl Serialize,
) -> Result<EventId, Error> {
    let id = EventId::new();
    statement::<()>("INSERT INTO events (merchant_id, id, type, data) VALUES ({}, {}, {}, {})")
        .bind::<SqlUuid, _>(merchant)
        .bind::<SqlUuid, _>(id)
        .bind::<Text, _>(kind)
        .bind::<Jsonb, _>(serde_json::to_value(object).map_err(Error::internal)?)
        .execute(conn)?;
    Ok(id)
}
