//! What happened, recorded in the transaction in which it happened.
//!
//! An event is written with the change that it tells of, so that both are there or neither is.

use diesel::prelude::*;
use diesel::sql_types::{Jsonb, Text, Uuid as SqlUuid};
use serde::Serialize;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::error::Error;
use crate::ids::MerchantId;
use crate::sql::statement;

/// Records an event of type `kind` (such as `charge.succeeded`) about the object `object_id`, which now is
/// as `object` says.
pub fn record(
    conn: &mut PgConnection,
    merchant: MerchantId,
    kind: &'static str,
    object_id: Uuid,
    object: &impl Serialize,
) -> Result<(), Error> {
    let data = serde_json::to_value(object).map_err(Error::internal)?;
    let insert =
        "INSERT INTO events (merchant_id, id, type, object_id, data) VALUES ({}, uuid_v7(), {}, {}, {})";
    statement::<()>(insert)
        .bind::<SqlUuid, _>(merchant)
        .bind::<Text, _>(kind)
        .bind::<SqlUuid, _>(object_id)
        .bind::<Jsonb, _>(data)
        .execute(conn)?;
    Ok(())
}

/// The same, as the columns of `events` that there are values for: for a statement that records many.
pub fn to_json(kind: &'static str, object_id: Uuid, object: &impl Serialize) -> Result<Value, Error> {
    let data = serde_json::to_value(object).map_err(Error::internal)?;
    Ok(json!({"type": kind, "object_id": object_id, "data": data}))
}
