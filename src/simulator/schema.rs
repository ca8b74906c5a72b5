//! The simulator's tables, and the words in their columns.

use diesel::table;

table! {
    authorizations (id) {
        id -> Text,
        status -> Text,
        amount -> Numeric,
        currency -> Text,
        captured -> Numeric,
        refunded -> Numeric,
        capture_key -> Nullable<Text>,
    }
}

table! {
    operations (id) {
        id -> Text,
        sequence -> BigInt,
        kind -> Text,
        idempotency_key -> Text,
        target -> Text,
        status -> Text,
        decline_code -> Nullable<Text>,
        refusal -> Nullable<Jsonb>,
        authorization_id -> Nullable<Text>,
        amount -> Nullable<Numeric>,
        currency -> Nullable<Text>,
        merchant -> Text,
        reference -> Text,
        created_at -> Timestamptz,
        decide_at -> Nullable<Timestamptz>,
        settlement_id -> Nullable<Text>,
        is_owed_back -> Bool,
    }
}

table! {
    failed_once (idempotency_key) {
        idempotency_key -> Text,
    }
}

table! {
    settlements (id) {
        id -> Text,
        merchant -> Text,
        currency -> Text,
        amount -> Numeric,
        operation_count -> BigInt,
        created_at -> Timestamptz,
    }
}

table! {
    outbox (id) {
        id -> Text,
        #[sql_name = "type"]
        kind -> Text,
        body -> Text,
        deliveries_due -> Integer,
        attempts -> Integer,
        due_at -> Timestamptz,
        created_at -> Timestamptz,
        delivered_at -> Nullable<Timestamptz>,
    }
}

/// An enum whose variants are words: in the database, in JSON, and in messages.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize,
            diesel::expression::AsExpression, diesel::deserialize::FromSqlRow,
        )]
        #[diesel(sql_type = diesel::sql_types::Text)]
        pub(super) enum $name {
            $(#[serde(rename = $word)] $variant,)+
        }

        impl $name {
            pub(super) fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }

        impl diesel::serialize::ToSql<diesel::sql_types::Text, diesel::pg::Pg> for $name {
            fn to_sql<'b>(
                &'b self,
                out: &mut diesel::serialize::Output<'b, '_, diesel::pg::Pg>,
            ) -> diesel::serialize::Result {
                diesel::serialize::ToSql::<diesel::sql_types::Text, diesel::pg::Pg>::to_sql(self.as_str(), out)
            }
        }

        impl diesel::deserialize::FromSql<diesel::sql_types::Text, diesel::pg::Pg> for $name {
            fn from_sql(bytes: diesel::pg::PgValue<'_>) -> diesel::deserialize::Result<Self> {
                match <String as diesel::deserialize::FromSql<diesel::sql_types::Text, diesel::pg::Pg>>::from_sql(bytes)?.as_str() {
                    $($word => Ok(Self::$variant),)+
                    other => Err(format!("{other:?} is no {}", stringify!($name)).into()),
                }
            }
        }
    };
}
pub(super) use words;

words! {
    /// Kinds of operations.
    Kind { Authorize = "authorize", Capture = "capture", Void = "void", Refund = "refund", Payout = "payout" }
}
words! {
    /// State of an operation.
    Status {
        Pending = "pending", Succeeded = "succeeded", Declined = "declined", Refused = "refused",
        Failed = "failed", Paid = "paid",
    }
}
words! {
    /// State of an authorization.
    AuthorizationStatus {
        Pending = "pending", Open = "open", Captured = "captured", Voided = "voided", Declined = "declined",
    }
}
words! {
    /// Reasons for an issuer's decline.
    DeclineCode { Generic = "generic_decline", InsufficientFunds = "insufficient_funds" }
}
