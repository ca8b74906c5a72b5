//! What happened, recorded in the transaction in which it happened.
//!
//! An event is written with the change that it tells of, so that both are there or neither is.

use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::query_builder::QueryFragment;
use diesel::sql_types::{Jsonb, Text, Uuid as SqlUuid};
use serde::Serialize;
use uuid::Uuid;

use crate::error::Error;
use crate::ids::{EventId, JournalEntryId, MerchantId};
use crate::ledger::{self, JournalEntry};
use crate::sql::{Statement, statement};

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
    bind_event(statement::<()>(insert), merchant, id, kind, object_id, &data).execute(conn)?;
    Ok(id)
}

/// The same, together with the insert of the object itself and the journal entry that it causes, in one round trip.
pub fn record_new(
    conn: &mut PgConnection,
    merchant: MerchantId,
    kind: &'static str,
    object_id: Uuid,
    object: &impl Serialize,
    insert: impl QueryFragment<Pg>,
    entry: Option<&JournalEntry>,
) -> Result<EventId, Error> {
    let (id, data) = (EventId::new(), serde_json::to_value(object).map_err(Error::internal)?);
    let statement = match entry {
        None => statement::<()>(
            "WITH event AS ( \
                 INSERT INTO events (merchant_id, id, type, object_id, data) VALUES ({}, {}, {}, {}, {})) \
             {}",
        ),
        // That the event comes out of it makes sure that the function is called.
        Some(entry) => ledger::bind_entry(
            statement::<()>(
                "WITH entry AS MATERIALIZED (SELECT ledger_post({}, {}, {}, {}, {}, {})), \
                 event AS ( \
                     INSERT INTO events (merchant_id, id, type, object_id, data) \
                     SELECT {}, {}, {}, {}, {} FROM entry) \
                 {}",
            ),
            merchant,
            JournalEntryId::new(),
            entry,
        ),
    };
    bind_event(statement, merchant, id, kind, object_id, &data).fragment(insert).execute(conn)?;
    Ok(id)
}

fn bind_event<'a, ST>(
    statement: Statement<'a, ST>,
    merchant: MerchantId,
    id: EventId,
    kind: &'static str,
    object_id: Uuid,
    data: &'a serde_json::Value,
) -> Statement<'a, ST> {
    statement
        .bind::<SqlUuid, _>(merchant)
        .bind::<SqlUuid, _>(id)
        .bind::<Text, _>(kind)
        .bind::<SqlUuid, _>(object_id)
        .bind::<Jsonb, _>(data)
}
