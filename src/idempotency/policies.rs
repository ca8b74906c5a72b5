//! The policies, one row per operation.
//!
//! Policies are data, in the table `idempotency_policies`. Each instance keeps a copy in memory, so that no
//! request pays for a query. It reads them again when it's notified of a change, and once a second in case
//! the notification was lost.

use std::collections::HashMap;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{Jsonb, Text};
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::error::failure::Failure;
use crate::storage::db::Db;

use super::descriptor::Descriptor;
use super::policy::{Policy, PolicySetting};

/// The parts of an operation that the policies need.
#[derive(Clone, Debug)]
pub struct Defaults {
    /// Name of the operation.
    pub operation: &'static str,
    /// Default policy.
    pub policy: Policy,
    /// Settings that only this operation has.
    pub settings: &'static [PolicySetting],
}

/// The columns that all operations share.
const COLUMNS: &str = "enforcement, rollout_percent, ttl_seconds, tombstone_seconds, on_mismatch, fingerprint, on_expired, \
                       wait_max_seconds, rate_per_second, burst, concurrency_max";

/// The columns of this policy, including its own settings.
fn columns(policy: &Policy) -> String {
    let own: String = policy.own.iter().map(|(name, _)| format!(", {name}")).collect();
    format!("{COLUMNS}{own}")
}

/// Reads a policy from a row as JSON. Fails on values that the table's constraints exclude.
fn from_row(row: &Value, defaults: Option<&Defaults>) -> Result<Policy, Failure> {
    fn word<T: std::str::FromStr>(row: &Value, name: &str) -> Result<T, Failure> {
        let word = row[name].as_str().and_then(|word| word.parse().ok());
        word.ok_or_else(|| Failure::internal(format!("a stored policy has no valid {name}")))
    }
    fn number<T: TryFrom<u64>>(row: &Value, name: &str) -> Result<T, Failure> {
        let number = row[name].as_u64().and_then(|number| T::try_from(number).ok());
        number.ok_or_else(|| Failure::internal(format!("a stored policy has no valid {name}")))
    }
    let mut policy = Policy {
        enforcement: word(row, "enforcement")?,
        rollout_percent: number(row, "rollout_percent")?,
        ttl_seconds: number(row, "ttl_seconds")?,
        tombstone_seconds: number(row, "tombstone_seconds")?,
        on_mismatch: word(row, "on_mismatch")?,
        fingerprint: word(row, "fingerprint")?,
        on_expired: word(row, "on_expired")?,
        wait_max_seconds: number(row, "wait_max_seconds")?,
        rate_per_second: number(row, "rate_per_second")?,
        burst: number(row, "burst")?,
        concurrency_max: number(row, "concurrency_max")?,
        own: defaults.map(|defaults| defaults.policy.own.clone()).unwrap_or_default(),
    };
    for setting in defaults.map(|defaults| defaults.settings).unwrap_or_default() {
        let value = setting.parse(&row[setting.name]);
        let value = value
            .ok_or_else(|| Failure::internal(format!("a stored policy has no valid {}", setting.name)))?;
        policy.own.set(setting.name, value);
    }
    Ok(policy)
}

/// Adds missing rows, with the defaults.
pub fn add_missing(conn: &mut PgConnection, operations: &[Defaults]) -> Result<(), Failure> {
    for defaults in operations {
        let columns = columns(&defaults.policy);
        sql_query(format!(
            "INSERT INTO idempotency_policies (operation, updated_by, {columns}) \
             SELECT $1, 'default', {columns} FROM jsonb_populate_record(NULL::idempotency_policies, $2) \
             ON CONFLICT DO NOTHING"
        ))
        .bind::<Text, _>(defaults.operation)
        .bind::<Jsonb, _>(json!(defaults.policy))
        .execute(conn)?;
    }
    Ok(())
}

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = Text)]
    operation: String,
    #[diesel(sql_type = Jsonb)]
    policy: Value,
}

/// Reads the policy of `operation` from the database and locks it. `None` if there is none.
///
/// Locks: the policy's row.
pub fn lock(
    conn: &mut PgConnection,
    operation: &str,
    operations: &[Defaults],
) -> Result<Option<Policy>, Failure> {
    let row = sql_query(
        "SELECT operation, to_jsonb(p) AS policy FROM idempotency_policies p WHERE operation = $1 FOR UPDATE",
    )
    .bind::<Text, _>(operation)
    .get_result::<Row>(conn)
    .optional()?;
    row.map(|row| from_row(&row.policy, defaults_of(operation, operations))).transpose()
}

/// Replaces the policy of `operation`, in the name of `changed_by`. The database records the change, and
/// notifies all instances when the transaction commits.
///
/// Locks: the policy's row.
pub fn change(
    conn: &mut PgConnection,
    operation: &str,
    policy: &Policy,
    changed_by: &str,
) -> Result<(), Failure> {
    let columns = columns(policy);
    sql_query(format!(
        "UPDATE idempotency_policies SET updated_by = $1, updated_at = clock_timestamp(), ({columns}) = \
             (SELECT {columns} FROM jsonb_populate_record(NULL::idempotency_policies, $2)) \
         WHERE operation = $3"
    ))
    .bind::<Text, _>(changed_by)
    .bind::<Jsonb, _>(json!(policy))
    .bind::<Text, _>(operation)
    .execute(conn)?;
    Ok(())
}

/// Policies by the name of their operation.
pub type ByOperation = HashMap<String, Arc<Policy>>;

/// Reads all policies, by operation.
pub fn load(conn: &mut PgConnection, operations: &[Defaults]) -> Result<ByOperation, Failure> {
    let rows =
        sql_query("SELECT operation, to_jsonb(p) AS policy FROM idempotency_policies p").load::<Row>(conn)?;
    rows.into_iter()
        .map(|row| {
            let policy = from_row(&row.policy, defaults_of(&row.operation, operations))?;
            Ok((row.operation, Arc::new(policy)))
        })
        .collect()
}

/// Finds the defaults of `operation`.
pub fn defaults_of<'a>(operation: &str, operations: &'a [Defaults]) -> Option<&'a Defaults> {
    operations.iter().find(|defaults| defaults.operation == operation)
}

/// Interval at which an instance reads the policies without a notification.
const REFRESH_INTERVAL: Duration = Duration::from_secs(1);

/// An instance's copy of the policies.
pub struct Policies {
    operations: Arc<Vec<Defaults>>,
    current: RwLock<Option<Arc<ByOperation>>>,
    changed: Notify,
}

impl Policies {
    /// Makes an empty copy for `operations`.
    pub fn new(operations: Vec<Defaults>) -> Self {
        let operations = Arc::new(operations);
        Self { operations, current: RwLock::new(None), changed: Notify::new() }
    }

    /// Returns the copy. Waits for the first one, which has a row for every operation.
    pub async fn current(&self, db: &Db) -> Result<Arc<ByOperation>, Failure> {
        let current = self.current.read().expect("no holder panics").clone();
        match current {
            Some(current) => Ok(current),
            None => self.refresh(db).await,
        }
    }

    /// Returns the policy of `operation`.
    pub async fn of(&self, operation: &str, db: &Db) -> Result<Arc<Policy>, Failure> {
        self.current(db)
            .await?
            .get(operation)
            .cloned()
            .ok_or_else(|| Failure::internal(format!("the operation {operation} has no policy")))
    }

    /// Makes [`keep_fresh`](Self::keep_fresh) read now.
    pub fn changed(&self) {
        self.changed.notify_one();
    }

    /// Keeps the copy up to date. Doesn't return. While the database can't be read, the copy stays as it is.
    pub async fn keep_fresh(&self, db: &Db) {
        loop {
            if let Err(error) = self.refresh(db).await {
                log::warn!("the idempotency policies couldn't be read: {}", error.detailed());
            }
            let _ = tokio::time::timeout(REFRESH_INTERVAL, self.changed.notified()).await;
        }
    }

    async fn refresh(&self, db: &Db) -> Result<Arc<ByOperation>, Failure> {
        let operations = Arc::clone(&self.operations);
        let loaded = db
            .run_retrying(move |conn| {
                let policies = load(conn, &operations)?;
                if operations.iter().all(|operation| policies.contains_key(operation.operation)) {
                    return Ok(policies);
                }
                add_missing(conn, &operations)?;
                load(conn, &operations)
            })
            .await?;
        let loaded = Arc::new(loaded);
        *self.current.write().expect("no holder panics") = Some(Arc::clone(&loaded));
        Ok(loaded)
    }
}

impl Defaults {
    /// Takes these parts from an operation's descriptor.
    pub fn of<C: Copy>(operation: &Descriptor<C>) -> Self {
        Self { operation: operation.name, policy: operation.policy(), settings: operation.policy_settings }
    }
}
