//! The rules that the engine follows, one row per operation.
//!
//! They are data, in the table `idempotency_policies`. Each instance keeps a copy in memory, so that no
//! request pays for a query, and reads them anew when it's notified of a change, and once a second in
//! case the notification was lost.

use std::collections::HashMap;
use std::str::FromStr;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use diesel::prelude::*;
use serde::Serialize;
use sha2::{Digest, Sha256};
use tokio::sync::Notify;
use utoipa::ToSchema;

use crate::base::ids::MerchantId;
use crate::error::Error;
use crate::storage::db::Db;
use crate::storage::schema::idempotency_policies;

use super::fingerprint::Recipe;
use super::registry::Registered;

/// Declares a choice that is stored and shown as a word.
macro_rules! choices {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
        #[serde(rename_all = "snake_case")]
        pub enum $name { $($(#[$variant_doc])* $variant,)* }

        impl $name {
            /// All words.
            pub const WORDS: &[&str] = &[$($word,)*];

            /// As it's stored.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }
        }

        impl std::str::FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $($word => Ok(Self::$variant),)*
                    _ => Err(format!("must be one of {}", Self::WORDS.join(", "))),
                }
            }
        }
    };
}

choices! {
    /// Whether idempotency keys have effect.
    Enforcement {
        /// Keys are required, and each executes once.
        Enforce = "enforce",
        /// Every request is executed as if it had no key. What the engine would have done is counted.
        Observe = "observe",
        /// Every request is executed as if it had no key.
        Off = "off",
    }
}
choices! {
    /// What happens to a key that comes back with another request.
    OnMismatch {
        /// It's refused.
        Reject = "reject",
        /// It gets the answer of the first request, if that was for the same method and path; a warning is logged.
        Replay = "replay",
    }
}
choices! {
    /// What of the body is compared.
    FingerprintKind {
        /// Its canonical JSON.
        CanonicalJson = "canonical_json",
        /// Its bytes.
        RawBody = "raw_body",
    }
}
choices! {
    /// What happens to a key that comes back after its lifetime.
    OnExpired {
        /// It's refused until it's forgotten.
        Reject = "reject",
        /// It's free at once.
        Execute = "execute",
    }
}
choices! {
    /// What happens to a charge that looks like another one under another key.
    OnSuspectedDuplicate {
        /// It's made, and the answer names the other.
        Report = "report",
        /// It's refused.
        Reject = "reject",
    }
}

impl FingerprintKind {
    /// How fingerprints are made.
    pub fn recipe(self) -> Recipe {
        match self {
            Self::CanonicalJson => Recipe::CanonicalJson,
            Self::RawBody => Recipe::RawBody,
        }
    }
}

/// How an operation treats its idempotency keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Policy {
    /// Whether keys have effect.
    pub enforcement: Enforcement,
    /// For how many of a hundred merchants `enforcement` holds; for the others, the next weaker one does
    /// (`observe` instead of `enforce`, `off` instead of `observe`). Raising it never drops a merchant.
    #[schema(minimum = 0, maximum = 100, example = 100)]
    pub rollout_percent: u8,
    /// How long an answer is kept and replayed.
    #[schema(minimum = 60, maximum = 2_592_000, example = 86_400)]
    pub ttl_seconds: u32,
    /// How long after that the key is refused rather than free.
    #[schema(minimum = 0, maximum = 31_536_000, example = 2_592_000)]
    pub tombstone_seconds: u32,
    /// What happens to a key that comes back with another request.
    pub on_mismatch: OnMismatch,
    /// What of the body is compared.
    pub fingerprint: FingerprintKind,
    /// What happens to a key that comes back after its lifetime.
    pub on_expired: OnExpired,
    /// Longest wait that a duplicate can ask for with `Prefer: wait=N`.
    #[schema(minimum = 0, maximum = 30, example = 30)]
    pub wait_max_seconds: u8,
    /// What happens to a charge that looks like another one under another key. Only `charges.create` looks.
    pub on_suspected_duplicate: OnSuspectedDuplicate,
    /// How far back it looks; 0 turns it off.
    #[schema(minimum = 0, maximum = 86_400, example = 600)]
    pub suspicion_window_seconds: u32,
}

impl Default for Policy {
    /// Keys are required, live for a day and are refused for another thirty.
    fn default() -> Self {
        Self {
            enforcement: Enforcement::Enforce,
            rollout_percent: 100,
            ttl_seconds: 24 * 60 * 60,
            tombstone_seconds: 30 * 24 * 60 * 60,
            on_mismatch: OnMismatch::Reject,
            fingerprint: FingerprintKind::CanonicalJson,
            on_expired: OnExpired::Reject,
            wait_max_seconds: 30,
            on_suspected_duplicate: OnSuspectedDuplicate::Report,
            suspicion_window_seconds: 10 * 60,
        }
    }
}

impl Policy {
    /// Whether keys of `merchant` have effect: `enforcement`, or the next weaker one outside the rollout.
    pub fn enforcement_for(&self, merchant: MerchantId) -> Enforcement {
        if rollout_bucket(merchant) < self.rollout_percent {
            return self.enforcement;
        }
        match self.enforcement {
            Enforcement::Enforce => Enforcement::Observe,
            Enforcement::Observe | Enforcement::Off => Enforcement::Off,
        }
    }
}

/// Where in a rollout a merchant comes, 0 to 99: the same on every instance and for every operation, and
/// independent of when the merchant was created.
fn rollout_bucket(merchant: MerchantId) -> u8 {
    let hash = Sha256::digest(merchant.0.as_bytes());
    let number = u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]]);
    u8::try_from(number % 100).expect("a remainder of 100 fits")
}

/// A row of the table, without who changed it last.
#[derive(Queryable, Selectable, Insertable, AsChangeset)]
#[diesel(table_name = idempotency_policies, primary_key(operation))]
struct PolicyRow {
    operation: String,
    enforcement: String,
    rollout_percent: i16,
    ttl_seconds: i32,
    tombstone_seconds: i32,
    on_mismatch: String,
    fingerprint: String,
    on_expired: String,
    wait_max_seconds: i16,
    on_suspected_duplicate: String,
    suspicion_window_seconds: i32,
}

impl PolicyRow {
    fn new(operation: &str, policy: &Policy) -> Self {
        // All numbers are far below the bounds of these types.
        let integer = |number: u32| i32::try_from(number).unwrap_or(i32::MAX);
        Self {
            operation: operation.to_owned(),
            enforcement: policy.enforcement.as_str().to_owned(),
            rollout_percent: policy.rollout_percent.into(),
            ttl_seconds: integer(policy.ttl_seconds),
            tombstone_seconds: integer(policy.tombstone_seconds),
            on_mismatch: policy.on_mismatch.as_str().to_owned(),
            fingerprint: policy.fingerprint.as_str().to_owned(),
            on_expired: policy.on_expired.as_str().to_owned(),
            wait_max_seconds: policy.wait_max_seconds.into(),
            on_suspected_duplicate: policy.on_suspected_duplicate.as_str().to_owned(),
            suspicion_window_seconds: integer(policy.suspicion_window_seconds),
        }
    }
}

impl TryFrom<PolicyRow> for Policy {
    type Error = Error;

    /// Fails on what the table's constraints exclude.
    fn try_from(row: PolicyRow) -> Result<Self, Error> {
        fn word<T: FromStr<Err = String>>(text: &str) -> Result<T, Error> {
            text.parse().map_err(|error| Error::internal(format!("a stored policy says {text}: {error}")))
        }
        fn number<T: TryFrom<i32>>(number: impl Into<i32>) -> Result<T, Error> {
            T::try_from(number.into())
                .map_err(|_| Error::internal("a stored policy has a number out of range"))
        }
        Ok(Self {
            enforcement: word(&row.enforcement)?,
            rollout_percent: number(row.rollout_percent)?,
            ttl_seconds: number(row.ttl_seconds)?,
            tombstone_seconds: number(row.tombstone_seconds)?,
            on_mismatch: word(&row.on_mismatch)?,
            fingerprint: word(&row.fingerprint)?,
            on_expired: word(&row.on_expired)?,
            wait_max_seconds: number(row.wait_max_seconds)?,
            on_suspected_duplicate: word(&row.on_suspected_duplicate)?,
            suspicion_window_seconds: number(row.suspicion_window_seconds)?,
        })
    }
}

/// Adds the rows that are missing for `operations`, with their defaults.
pub fn add_missing(conn: &mut PgConnection, operations: &[Registered]) -> Result<(), Error> {
    let rows: Vec<_> = operations
        .iter()
        .map(|operation| {
            let row = PolicyRow::new(operation.name, &(operation.policy)());
            (row, idempotency_policies::updated_by.eq("default"))
        })
        .collect();
    diesel::insert_into(idempotency_policies::table).values(rows).on_conflict_do_nothing().execute(conn)?;
    Ok(())
}

/// The policy of `operation` as it is in the database, or `None` if there is none.
///
/// Locks: the policy's row.
pub fn lock(conn: &mut PgConnection, operation: &str) -> Result<Option<Policy>, Error> {
    let row = idempotency_policies::table
        .find(operation)
        .select(PolicyRow::as_select())
        .for_update()
        .first(conn)
        .optional()?;
    row.map(Policy::try_from).transpose()
}

/// Replaces the policy of `operation`, in the name of `changed_by`. The database keeps the change, and tells
/// all instances when the transaction commits.
///
/// Locks: the policy's row.
pub fn change(
    conn: &mut PgConnection,
    operation: &str,
    policy: &Policy,
    changed_by: &str,
) -> Result<(), Error> {
    let now = diesel::dsl::sql::<diesel::sql_types::Timestamptz>("clock_timestamp()");
    diesel::update(idempotency_policies::table.find(operation))
        .set((
            PolicyRow::new(operation, policy),
            idempotency_policies::updated_by.eq(changed_by),
            idempotency_policies::updated_at.eq(now),
        ))
        .execute(conn)?;
    Ok(())
}

/// Policies by the name of their operation.
pub type ByOperation = HashMap<String, Arc<Policy>>;

/// All policies, by operation.
pub fn load(conn: &mut PgConnection) -> Result<ByOperation, Error> {
    let rows = idempotency_policies::table.select(PolicyRow::as_select()).load(conn)?;
    rows.into_iter().map(|row| Ok((row.operation.clone(), Arc::new(Policy::try_from(row)?)))).collect()
}

/// How often an instance reads the policies if nobody tells it of a change.
const REFRESH_INTERVAL: Duration = Duration::from_secs(1);

/// An instance's copy of the policies.
pub struct Policies {
    operations: Vec<Registered>,
    current: RwLock<Option<Arc<ByOperation>>>,
    changed: Notify,
}

impl Policies {
    /// A copy for `operations` that isn't there yet.
    pub fn new(operations: Vec<Registered>) -> Self {
        Self { operations, current: RwLock::new(None), changed: Notify::new() }
    }

    /// The copy. Waits for the first one, with which every operation has its row.
    pub async fn current(&self, db: &Db) -> Result<Arc<ByOperation>, Error> {
        let current = self.current.read().expect("no holder panics").clone();
        match current {
            Some(current) => Ok(current),
            None => self.refresh(db).await,
        }
    }

    /// The policy of `operation`.
    pub async fn of(&self, operation: &str, db: &Db) -> Result<Arc<Policy>, Error> {
        self.current(db)
            .await?
            .get(operation)
            .cloned()
            .ok_or_else(|| Error::internal(format!("the operation {operation} has no policy")))
    }

    /// Makes [`keep_fresh`](Self::keep_fresh) read now.
    pub fn changed(&self) {
        self.changed.notify_one();
    }

    /// Keeps the copy up to date; doesn't return. While the database can't be read, the copy stays as it is.
    pub async fn keep_fresh(&self, db: &Db) {
        loop {
            if let Err(error) = self.refresh(db).await {
                log::warn!("the idempotency policies couldn't be read: {}", error.detailed());
            }
            let _ = tokio::time::timeout(REFRESH_INTERVAL, self.changed.notified()).await;
        }
    }

    async fn refresh(&self, db: &Db) -> Result<Arc<ByOperation>, Error> {
        let operations = self.operations.clone();
        let loaded = db
            .run_retrying(move |conn| {
                let policies = load(conn)?;
                if operations.iter().all(|operation| policies.contains_key(operation.name)) {
                    return Ok(policies);
                }
                add_missing(conn, &operations)?;
                load(conn)
            })
            .await?;
        let loaded = Arc::new(loaded);
        *self.current.write().expect("no holder panics") = Some(Arc::clone(&loaded));
        Ok(loaded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn raising_the_percentage_never_drops_a_merchant() {
        let merchants: Vec<_> = (0..2_000).map(|n| MerchantId(Uuid::from_u128(n))).collect();
        let mut before = 0;
        for percent in 0..=100 {
            let policy = Policy { rollout_percent: percent, ..Policy::default() };
            let narrower = Policy { rollout_percent: percent.saturating_sub(1), ..Policy::default() };
            let enforced =
                |policy: &Policy, merchant| policy.enforcement_for(merchant) == Enforcement::Enforce;
            assert!(merchants.iter().all(|&m| enforced(&policy, m) || !enforced(&narrower, m)));
            let count = merchants.iter().filter(|&&m| enforced(&policy, m)).count();
            assert!(count >= before);
            // Evenly spread, within what two thousand draws allow.
            assert!(count.abs_diff(usize::from(percent) * 20) < 120, "{count} at {percent} %");
            before = count;
        }
        assert_eq!(before, merchants.len());
    }

    #[test]
    fn outside_of_the_rollout_the_next_weaker_enforcement_holds() {
        let merchant = MerchantId(Uuid::nil());
        for (enforcement, outside) in [
            (Enforcement::Enforce, Enforcement::Observe),
            (Enforcement::Observe, Enforcement::Off),
            (Enforcement::Off, Enforcement::Off),
        ] {
            let policy = |rollout_percent| Policy { enforcement, rollout_percent, ..Policy::default() };
            assert_eq!(policy(100).enforcement_for(merchant), enforcement);
            assert_eq!(policy(0).enforcement_for(merchant), outside);
        }
    }
}
