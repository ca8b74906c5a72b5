//! Batched claims and completions of one operation's requests.

use std::sync::Arc;
use std::time::Duration;

use diesel::PgConnection;

use super::metrics::Metrics;
use crate::error::failure::Failure;
use crate::storage::batch::Batcher;
use crate::storage::db::{Db, is_outcome_open};

use super::decision::{Decision, decide};
use super::descriptor::Batching;
use super::envelope::Envelope;
use super::store::{self, Claim, Claimant, Completed, Completion};

/// Result of a look-up of a key that is claimed if it is new.
pub enum ClaimResult {
    /// The request has claimed its key; this was read with it.
    ClaimWithData(Box<Claim>, Option<serde_json::Value>),
    /// The key isn't new; these are the decision on it and its age.
    Found(Decision, Duration),
    /// Another request is claiming the key right now.
    Contended,
}

/// The batchers of one operation.
pub struct Batchers {
    pub claims: Arc<Batcher<Claimant, Result<ClaimResult, Failure>>>,
    /// Batcher of completions. Returns `None` for a request that has to find out by itself why it wasn't
    /// completed.
    pub completions: Arc<Batcher<Completion, Option<Completed>>>,
}

impl Batchers {
    /// Makes the batchers of an operation whose claims have a `lease`, for up to `size_max` requests at a
    /// time.
    pub fn new(
        db: &Db,
        batching: Batching,
        proof_sql: &'static str,
        lease: Duration,
        size_max: usize,
        metrics: &Metrics,
    ) -> Self {
        Self {
            claims: Batcher::new(db.clone(), size_max, metrics.of_batches("claim"), move |conn, requests| {
                look_up(conn, requests, lease, batching.select_sql, proof_sql)
            }),
            completions: Batcher::new(
                db.clone(),
                size_max,
                metrics.of_batches("finish"),
                move |conn, completions| store::complete_all(conn, completions, batching),
            ),
        }
    }
}

/// Looks all keys up, and claims the new ones, in one or two round trips.
///
/// Errors: those of the database; `outcome_unknown` if the connection is lost during the claims.
fn look_up(
    conn: &mut PgConnection,
    requests: &[Claimant],
    lease: Duration,
    select_sql: &'static str,
    proof_sql: &'static str,
) -> Result<Vec<Result<ClaimResult, Failure>>, Failure> {
    let envelopes: Vec<&Envelope> = requests.iter().map(|request| &*request.envelope).collect();
    let decisions: Vec<Result<(Decision, Duration), Failure>> = store::find_all(conn, &envelopes, proof_sql)?
        .into_iter()
        .zip(requests)
        .map(|(stored, request)| {
            let stored = stored?;
            let age = stored.as_ref().map(|stored| stored.age).unwrap_or_default();
            Ok((decide(stored, &request.policy), age))
        })
        .collect();
    let claimants: Vec<&Claimant> = decisions
        .iter()
        .zip(requests)
        .filter(|(decision, _)| matches!(decision, Ok((Decision::Claim, _))))
        .map(|(_, request)| request)
        .collect();
    let claimed = if claimants.is_empty() {
        Vec::new()
    } else {
        store::claim_all(conn, &claimants, lease, select_sql).map_err(|failure| {
            // The claims may have been committed.
            if is_outcome_open(&failure) { Failure::outcome_unknown(failure.detailed()) } else { failure }
        })?
    };
    let mut claimed = claimed.into_iter();
    let results = decisions.into_iter().map(|decision| {
        Ok(match decision? {
            (Decision::Claim, _) => match claimed.next().flatten() {
                Some((claim, read)) => ClaimResult::ClaimWithData(Box::new(claim), read),
                None => ClaimResult::Contended,
            },
            (decision, age) => ClaimResult::Found(decision, age),
        })
    });
    Ok(results.collect())
}
