//! The feed of events: for clients that poll and go on where they stopped.
//!
//! Promised: no event that commits later sorts before a cursor that was handed out, so a client that goes on
//! after its cursor misses none. Ids and times don't promise that: they are drawn in one order and committed
//! in another.
//!
//! So the order is that of the writing transactions, and a page ends at the oldest transaction that still runs:
//! all below it have ended. A transaction that stays open, in any database of the server, holds the feed up.
//!
//! Transaction ids start afresh in another cluster, as after a dump and restore, and fall back when commits
//! were lost with a server. So they count within an epoch (see `event_feed_horizon` in the migrations), and a
//! cursor stays valid. One that lies in the future can only be of another database, and is refused.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Integer, Jsonb, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use serde_json::Value;
use uuid::Uuid;

use crate::base::ids::{EventId, MerchantId};
use crate::base::time;
use crate::error::Error;
use crate::storage::clock;
use crate::storage::db::Db;
use crate::storage::shape;
use crate::storage::sql::statement;

/// Maximum number of events that a page with a filter looks at, so that each page costs the same.
const SCAN_MAX: i64 = 1_000;
/// Pause before the database is asked again.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Version of the cursors' format, in front of each.
const VERSION: &str = "c1_";

/// A place in the feed, right after an event or between two transactions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    epoch: i32,
    transaction: i64,
    event: Uuid,
}

impl Position {
    /// The place before all events.
    const BEGINNING: Self = Self { epoch: 0, transaction: 0, event: Uuid::nil() };
}

/// Clients don't look inside.
impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = Vec::with_capacity(28);
        bytes.extend(self.epoch.to_be_bytes());
        bytes.extend(self.transaction.to_be_bytes());
        bytes.extend(self.event.as_bytes());
        write!(f, "{VERSION}{}", URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl FromStr for Position {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let bytes = URL_SAFE_NO_PAD.decode(text.strip_prefix(VERSION).ok_or(())?).map_err(drop)?;
        let (epoch, rest) = bytes.split_first_chunk().ok_or(())?;
        let (transaction, event) = rest.split_first_chunk().ok_or(())?;
        let position = Self {
            epoch: i32::from_be_bytes(*epoch),
            transaction: i64::from_be_bytes(*transaction),
            event: Uuid::from_slice(event).map_err(drop)?,
        };
        if position.epoch < 0 || position.transaction < 0 { Err(()) } else { Ok(position) }
    }
}

/// Where a client begins to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// With the oldest event that is kept.
    Oldest,
    /// With what is recorded from now on.
    Now,
    /// After an event.
    Event(EventId),
    /// After a cursor.
    Cursor(Position),
}

impl Start {
    /// Format of a start's text.
    pub const FORMAT: &str =
        "must be the `next` of an earlier page, the id of an event, `now`, or empty for the oldest event";
}

impl FromStr for Start {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "" => Ok(Self::Oldest),
            "now" => Ok(Self::Now),
            _ if text.starts_with(EventId::PREFIX) => text.parse().map(Self::Event).map_err(drop),
            _ => text.parse().map(Self::Cursor),
        }
    }
}

/// Which events a page shows: those that meet everything that is given.
#[derive(Clone, Debug)]
pub struct Filter {
    /// Only events of this type.
    pub kind: Option<&'static str>,
    /// Only events of the object with this id, as a text and as its number.
    pub object: Option<(String, Uuid)>,
    /// Only events from this id on.
    pub from: Option<Uuid>,
    /// Only events below this id.
    pub to: Option<Uuid>,
}

impl Filter {
    fn is_empty(&self) -> bool {
        self.kind.is_none() && self.object.is_none() && self.from.is_none() && self.to.is_none()
    }
}

/// An event: id, type, time, object.
pub type FeedEvent = (EventId, String, DateTime<Utc>, Value);

/// A page of the feed.
#[derive(Debug)]
pub struct FeedPage {
    /// The events, in the order of their ids.
    pub events: Vec<FeedEvent>,
    /// Whether there are more already.
    pub has_more: bool,
    /// Where to go on.
    pub next: Position,
}

/// A row of the scan; without its object if the filter leaves it out.
type Row = (i32, i64, EventId, String, DateTime<Utc>, Option<Value>);

/// Reads up to `limit` events after `start`.
///
/// Errors: `validation_failed` if there is no such event, or if the cursor is of another database.
pub fn page(
    conn: &mut PgConnection,
    merchant: MerchantId,
    start: Start,
    filter: &Filter,
    limit: i64,
) -> Result<FeedPage, Error> {
    let mut horizon = horizon(conn)?;
    if shape::is_distributed() {
        horizon.transaction = statement::<BigInt>("SELECT number_settled({}, {}::text::xid8)::text::bigint")
            .bind::<SqlUuid, _>(merchant)
            .bind::<BigInt, _>(horizon.transaction)
            .get_result(conn)?;
    }
    let after = match start {
        Start::Oldest => Position::BEGINNING,
        Start::Now => horizon,
        // If earlier transactions still run, their events are to come; those since then are repeated.
        Start::Event(id) => find(conn, merchant, id)?.min(horizon),
        Start::Cursor(position) if position > horizon => {
            return Err(refusal(
                "is a cursor of another database; go on after the last event that you have seen, by its id",
            ));
        }
        Start::Cursor(position) => position,
    };
    let scan = if filter.is_empty() { limit + 1 } else { SCAN_MAX };
    let object = filter.object.as_ref();
    let mut rows = statement::<(Integer, BigInt, SqlUuid, Text, Timestamptz, Nullable<Jsonb>)>(
        "SELECT epoch, transaction_id::text::bigint, id, type, created_at, \
             CASE WHEN type = coalesce({}, type) AND object_id = coalesce({}, object_id) \
                 AND data->>'id' IS NOT DISTINCT FROM coalesce({}, data->>'id') \
                 AND id >= {} AND id < {} THEN data END \
         FROM (SELECT * FROM events WHERE merchant_id = {} \
                   AND (epoch, transaction_id, id) > ({}, {}::text::xid8, {}) \
                   AND (epoch, transaction_id) < ({}, {}::text::xid8) \
               ORDER BY epoch, transaction_id, id LIMIT {}) AS scanned \
         ORDER BY epoch, transaction_id, id",
    )
    .bind::<Nullable<Text>, _>(filter.kind)
    .bind::<Nullable<SqlUuid>, _>(object.map(|(_, number)| *number))
    .bind::<Nullable<Text>, _>(object.map(|(text, _)| text.as_str()))
    .bind::<SqlUuid, _>(filter.from.unwrap_or(Uuid::nil()))
    .bind::<SqlUuid, _>(filter.to.unwrap_or(Uuid::max()))
    .bind::<SqlUuid, _>(merchant)
    .bind::<Integer, _>(after.epoch)
    .bind::<BigInt, _>(after.transaction)
    .bind::<SqlUuid, _>(after.event)
    .bind::<Integer, _>(horizon.epoch)
    .bind::<BigInt, _>(horizon.transaction)
    .bind::<BigInt, _>(scan)
    .load::<Row>(conn)?;

    let is_complete = i64::try_from(rows.len()).is_ok_and(|count| count < scan);
    let full = usize::try_from(limit).map_err(Error::internal)?;
    // The first event beyond the page, if there is one: the next page begins with it.
    let beyond = rows.iter().enumerate().filter(|(_, row)| row.5.is_some()).nth(full).map(|(at, _)| at);
    rows.truncate(beyond.unwrap_or(rows.len()));
    let has_more = beyond.is_some() || !is_complete;
    // Never beyond what was seen: the horizon also counts transactions that a crash of the server may forget, whose ids are
    // then used again.
    let next = match rows.last() {
        Some((epoch, transaction, event, ..)) => {
            Position { epoch: *epoch, transaction: *transaction, event: event.0 }
        }
        None => after,
    };
    if shape::is_distributed() && next != after {
        clock::keep_transaction_numbers(conn)?;
    }
    let shown = rows.into_iter().filter_map(|(_, _, id, kind, at, data)| Some((id, kind, at, data?)));
    let mut events: Vec<FeedEvent> = shown.collect();
    // One object's changes wait for each other, but not their transactions' ids.
    events.sort_by_key(|(id, ..)| *id);
    Ok(FeedPage { events, has_more, next })
}

/// Begins a new epoch if the database is in another cluster than before, as soon as it answers: before there
/// are new events.
pub async fn begin_epoch(db: Db) {
    while let Err(error) = db.run_retrying(horizon).await {
        log::warn!("can't find out whether the events are in another cluster: {}", error.detailed());
        tokio::time::sleep(time::jittered(RETRY_AFTER)).await;
    }
}

/// The end of what can be read. Begins a new epoch in another cluster.
fn horizon(conn: &mut PgConnection) -> Result<Position, Error> {
    let (epoch, transaction) =
        statement::<(Integer, BigInt)>("SELECT epoch, horizon::text::bigint FROM event_feed_horizon()")
            .get_result(conn)?;
    Ok(Position { epoch, transaction, event: Uuid::nil() })
}

fn find(conn: &mut PgConnection, merchant: MerchantId, id: EventId) -> Result<Position, Error> {
    let (epoch, transaction) = statement::<(Integer, BigInt)>(
        "SELECT epoch, transaction_id::text::bigint FROM events WHERE merchant_id = {} AND id = {}",
    )
    .bind::<SqlUuid, _>(merchant)
    .bind::<SqlUuid, _>(id)
    .get_result(conn)
    .optional()?
    .ok_or_else(|| refusal("there is no such event, or it isn't kept any more"))?;
    Ok(Position { epoch, transaction, event: id.0 })
}

fn refusal(detail: &str) -> Error {
    Error::field("/after", detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_as_it_was_handed_out() {
        let position = Position { epoch: 2, transaction: 1 << 40, event: Uuid::max() };
        let text = position.to_string();
        assert_eq!(text.parse(), Ok(Start::Cursor(position)));
        assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)), "{text}");
        let id = EventId(Uuid::max());
        assert_eq!(id.to_string().parse(), Ok(Start::Event(id)));
        assert_eq!(("".parse(), "now".parse()), (Ok(Start::Oldest), Ok(Start::Now)));
        let negative = Position { epoch: -1, ..position }.to_string();
        for wrong in ["0", "c1_", "c2_AAAA", "evt_1", "ch_1", "Now", &text[..text.len() - 1], &negative] {
            assert_eq!(wrong.parse::<Start>(), Err(()), "{wrong}");
        }
    }

    #[test]
    fn positions_are_in_the_order_of_epochs_transactions_and_ids() {
        let position = |epoch, transaction, event| Position { epoch, transaction, event };
        let (first, last) = (Uuid::nil(), Uuid::max());
        assert!(position(1, 9, last) < position(2, 1, first));
        assert!(position(1, 8, last) < position(1, 9, first));
        assert!(position(1, 9, first) < position(1, 9, last));
    }
}

#[cfg(test)]
mod properties {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_cursor_has_one_spelling(epoch in 0i32.., transaction in 0i64.., event in any::<u128>()) {
            let position = Position { epoch, transaction, event: Uuid::from_u128(event) };
            prop_assert_eq!(position.to_string().parse(), Ok(position));
        }

        #[test]
        fn any_text_is_a_start_or_refused(text in "c1_[A-Za-z0-9_=-]{36,40}|(c1_|evt_)?[ -~]{0,50}|\\PC{0,50}") {
            if let Ok(Start::Cursor(position)) = text.parse() {
                prop_assert_eq!(position.to_string(), text);
            }
        }
    }
}
