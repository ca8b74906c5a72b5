//! What happened, recorded in the transaction in which it happened.
//!
//! An event is written with the change that it tells of, so that both are there or neither is.

use diesel::prelude::*;
use diesel::sql_types::{Jsonb, Text, Uuid as SqlUuid};
use serde::Serialize;
use uuid::Uuid;

use crate::error::Error;
use crate::idempotency::Effects;
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
    bind_event(statement::<()>(insert), merchant, id, kind, object_id, data).execute(conn)?;
    Ok(id)
}

/// The same as [effects](Effects) of a request, together with the insert of the object itself, whose values must come
/// from `owner`, and the journal entry that it causes.
pub fn record_with(
    merchant: MerchantId,
    kind: &'static str,
    object_id: Uuid,
    object: &impl Serialize,
    insert: Statement<'static, ()>,
    entry: Option<JournalEntry>,
) -> Result<Effects, Error> {
    let (id, data) = (EventId::new(), serde_json::to_value(object).map_err(Error::internal)?);
    let effects = match entry {
        None => statement::<()>(
            "event AS ( \
                 INSERT INTO events (merchant_id, id, type, object_id, data) SELECT {}, {}, {}, {}, {} FROM owner), \
             object AS ({})",
        ),
        // That the event comes out of it makes sure that the function is called.
        Some(entry) => ledger::bind_entry(
            statement::<()>(
                "entry AS MATERIALIZED (SELECT ledger_post({}, {}, {}, {}, {}, {}) FROM owner), \
                 event AS ( \
                     INSERT INTO events (merchant_id, id, type, object_id, data) \
                     SELECT {}, {}, {}, {}, {} FROM entry), \
                 object AS ({})",
            ),
            merchant,
            JournalEntryId::new(),
            entry,
        ),
    };
    Ok(bind_event(effects, merchant, id, kind, object_id, data).fragment(insert))
}

fn bind_event<'a, ST>(
    statement: Statement<'a, ST>,
    merchant: MerchantId,
    id: EventId,
    kind: &'static str,
    object_id: Uuid,
    data: serde_json::Value,
) -> Statement<'a, ST> {
    statement
        .bind::<SqlUuid, _>(merchant)
        .bind::<SqlUuid, _>(id)
        .bind::<Text, _>(kind)
        .bind::<SqlUuid, _>(object_id)
        .bind::<Jsonb, _>(data)
}
