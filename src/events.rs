//! What happened, recorded in the transaction in which it happened.
//!
//! An event is written with the change that it tells of, so that both are there or neither is.

use diesel::prelude::*;
use diesel::sql_types::{Jsonb, Text, Uuid as SqlUuid};
use serde::Serialize;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::error::Error;
use crate::ids::{EventId, MerchantId};
use crate::sql::statement;

/// Records an event of type `kind` (such as `charge.succeeded`) about the object `object_id`, which now is
/// as `object` says.
pub fn record(
    conn: &mut PgConnection,
    merchant: MerchantId,
    kind: &'static str,
    object_id: Uuid,
    object: &impl Serialize,
) -> Result<EventId, Error> {
    let (id, data) = (EventId::new(), serde_json::to_value(object).map_err(Error::internal)?);
    let insert = "INSERT INTO events (merchant_id, id, type, object_id, data) VALUES ({}, {}, {}, {}, {})";
    statement::<()>(insert)
        .bind::<SqlUuid, _>(merchant)
        .bind::<SqlUuid, _>(id)
        .bind::<Text, _>(kind)
        .bind::<SqlUuid, _>(object_id)
        .bind::<Jsonb, _>(data)
        .execute(conn)?;
    Ok(id)
}

/// The same, with a new id, as the columns of `events`: for a statement that records many.
pub fn to_json(kind: &'static str, object_id: Uuid, object: &impl Serialize) -> Result<Value, Error> {
    let data = serde_json::to_value(object).map_err(Error::internal)?;
    Ok(json!({"id": EventId::new().0, "type": kind, "object_id": object_id, "data": data}))
}
