//! What happened, recorded in the transaction in which it happened.
//!
//! An event is written with the change that it tells of, so that both are there or neither is.

use diesel::prelude::*;
use diesel::sql_types::{Jsonb, Text, Uuid as SqlUuid};
use serde::Serialize;
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
    let id = EventId::new();
    statement::<()>(
        "INSERT INTO events (merchant_id, id, type, object_id, data) VALUES ({}, {}, {}, {}, {})",
    )
    .bind::<SqlUuid, _>(merchant)
    .bind::<SqlUuid, _>(id)
    .bind::<Text, _>(kind)
    .bind::<SqlUuid, _>(object_id)
    .bind::<Jsonb, _>(serde_json::to_value(object).map_err(Error::internal)?)
    .execute(conn)?;
    Ok(id)
}
