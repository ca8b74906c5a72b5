//! Identifiers: a prefix that names the kind of object, and a time-ordered UUID (RFC 9562, version 7) in 32
//! hexadecimal digits, as in `ch_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b`.
//!
//! Each kind is a type of its own, so that a refund's id can't be passed for a charge's. In the database they
//! are plain `uuid` columns.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use uuid::Uuid;

/// The text isn't an identifier of the expected kind.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an identifier of this kind")]
pub struct ParseIdError;

fn parse(prefix: &str, text: &str) -> Result<Uuid, ParseIdError> {
    let digits = text.strip_prefix(prefix).ok_or(ParseIdError)?;
    // One spelling per id: the uuid parser alone would also accept hyphens, braces and upper case.
    if digits.len() != 32 || !digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(ParseIdError);
    }
    Uuid::parse_str(digits).map_err(|_| ParseIdError)
}

/// The UUID of an identifier of any kind.
pub fn parse_any(text: &str) -> Result<Uuid, ParseIdError> {
    let (prefix, _) = text.rsplit_once('_').ok_or(ParseIdError)?;
    if prefix.is_empty() || !prefix.bytes().all(|b| b.is_ascii_lowercase()) {
        return Err(ParseIdError);
    }
    parse(&text[..=prefix.len()], text)
}

/// Makes an identifier of a time, in order after those of earlier microseconds: the 12 bits after the
/// milliseconds hold their fraction in 4096ths (RFC 9562, section 6.2, method 3).
///
/// For ids in lists, it must be the database's time: then lists by id are lists by time, whichever instance
/// made the rows, and whatever its clock shows. Rows that a statement creates get their ids from SQL's
/// `uuid_v7()`.
pub fn v7(time: DateTime<Utc>) -> Uuid {
    let fraction = time.timestamp_subsec_nanos() % 1_000_000 * 4096 / 1_000_000;
    let mut after_the_time: [u8; 10] = rand::random();
    after_the_time[..2].copy_from_slice(&(fraction as u16).to_be_bytes());
    let milliseconds = u64::try_from(time.timestamp_millis()).unwrap_or_default();
    uuid::Builder::from_unix_timestamp_millis(milliseconds, &after_the_time).into_uuid()
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord,
            diesel::expression::AsExpression, diesel::deserialize::FromSqlRow,
        )]
        #[diesel(sql_type = diesel::sql_types::Uuid)]
        pub struct $name(pub Uuid);

        impl $name {
            /// Prefix of this kind's identifiers.
            pub const PREFIX: &'static str = $prefix;

            /// Makes an identifier of a time: in order after those of earlier microseconds, before those of
            /// later ones.
            pub fn at(time: DateTime<Utc>) -> Self {
                Self(v7(time))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}{}", Self::PREFIX, self.0.as_simple())
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;
            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                parse(Self::PREFIX, text).map(Self)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl diesel::serialize::ToSql<diesel::sql_types::Uuid, diesel::pg::Pg> for $name {
            fn to_sql<'b>(
                &'b self,
                out: &mut diesel::serialize::Output<'b, '_, diesel::pg::Pg>,
            ) -> diesel::serialize::Result {
                diesel::serialize::ToSql::<diesel::sql_types::Uuid, diesel::pg::Pg>::to_sql(&self.0, out)
            }
        }

        impl diesel::deserialize::FromSql<diesel::sql_types::Uuid, diesel::pg::Pg> for $name {
            fn from_sql(bytes: diesel::pg::PgValue<'_>) -> diesel::deserialize::Result<Self> {
                diesel::deserialize::FromSql::<diesel::sql_types::Uuid, diesel::pg::Pg>::from_sql(bytes)
                    .map(Self)
            }
        }
    };
}

id!(
    /// A merchant: the tenant that owns everything else.
    MerchantId, "mer_"
);
id!(
    /// A charge.
    ChargeId, "ch_"
);
id!(
    /// A refund.
    RefundId, "re_"
);
id!(
    /// A payout.
    PayoutId, "po_"
);
id!(
    /// A payment from the processor to us. The processor makes the id.
    SettlementId, "set_"
);
id!(
    /// A dispute.
    DisputeId, "dp_"
);
id!(
    /// An account of the ledger.
    AccountId, "la_"
);
id!(
    /// A merchant's API key.
    ApiKeyId, "ak_"
);
id!(
    /// A journal entry of the ledger.
    JournalEntryId, "je_"
);
id!(
    /// A change of an idempotency policy.
    PolicyChangeId, "pc_"
);
id!(
    /// An event: a recorded state change.
    EventId, "evt_"
);
id!(
    /// An event from the processor.
    AcquirerEventId, "ae_"
);
id!(
    /// An endpoint that events are delivered to.
    WebhookEndpointId, "we_"
);
id!(
    /// The delivery of an event to an endpoint.
    DeliveryId, "wd_"
);

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    #[test]
    fn an_id_survives_printing_and_parsing() {
        let id = ChargeId::at(crate::base::time::now());
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(id.to_string().len(), 3 + 32);
    }

    #[test]
    fn other_spellings_are_refused() {
        let id = ChargeId::at(crate::base::time::now());
        let hyphenated = format!("ch_{}", id.0.as_hyphenated());
        let upper = id.to_string().to_uppercase();
        let other_kind = id.to_string().replace("ch_", "mer_");
        for text in [hyphenated.as_str(), &upper, &other_kind, "ch_", "", "ch_é", "ch_00"] {
            assert_eq!(text.parse::<ChargeId>(), Err(ParseIdError), "{text}");
        }
    }

    #[test]
    fn an_id_of_any_kind_is_told_from_other_texts() {
        let id = ChargeId::at(crate::base::time::now());
        assert_eq!(parse_any(&id.to_string()), Ok(id.0));
        let odd = ["\0_", "_", "Ch_", "é_"].map(|prefix| id.to_string().replace("ch_", prefix));
        let known = [id.0.to_string(), id.0.as_simple().to_string(), format!("{id}0"), "ch_".to_owned()];
        for text in known.into_iter().chain(odd) {
            assert_eq!(parse_any(&text), Err(ParseIdError), "{text}");
        }
    }

    #[test]
    fn ids_are_in_the_order_of_their_times() {
        let start = DateTime::UNIX_EPOCH;
        for step in [TimeDelta::milliseconds(1), TimeDelta::microseconds(1)] {
            let ids: Vec<_> = (0..3000).map(|n| ChargeId::at(start + step * n)).collect();
            assert!(ids.is_sorted(), "{step}");
        }
        assert_eq!(ChargeId::at(start).0.get_version_num(), 7);
        assert_eq!(ChargeId::at(start).0.get_variant(), uuid::Variant::RFC4122);
        assert_ne!(ChargeId::at(start), ChargeId::at(start));
    }
}
