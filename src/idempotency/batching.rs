//! Batched claims and completions of one operation's requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use diesel::PgConnection;

use super::metrics::Metrics;
use crate::error::failure::Failure;
use crate::storage::batch::Batcher;
use crate::storage::db::{Db, is_outcome_open};

use super::decision::{Decision, decide};
use super::descriptor::Batching;
use super::envelope::Envelope;
use super::store::{self, Claim, ClaimWithData, Claimant, Completed, Completion};

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
        let claiming =
            Claiming { lease, select_sql: batching.select_sql, proof_sql, new: AtomicU32::new(1_000) };
        Self {
            claims: Batcher::new(db.clone(), size_max, metrics.of_batches("claim"), move |conn, requests| {
                claiming.run(conn, requests)
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

/// A result per request. The outer error concerns all of them.
type Each<T> = Result<Vec<Result<T, Failure>>, Failure>;

/// How the keys of one operation's requests are claimed.
struct Claiming {
    lease: Duration,
    select_sql: &'static str,
    proof_sql: &'static str,
    /// The recent share of new keys, in thousandths.
    new: AtomicU32,
}

/// The least share of new keys, in thousandths, for which one is claimed without a look. A claim that fails costs more than a
/// look that finds something.
const NEW_MIN: u32 = 900;

impl Claiming {
    /// Looks all keys up and claims the new ones, in one or two round trips. Where nearly all keys are new, claims that of a
    /// lone request first, and looks it up only if it can't be claimed.
    ///
    /// Errors: those of the database; `outcome_unknown` if the connection is lost during the claims.
    fn run(&self, conn: &mut PgConnection, requests: &[Claimant]) -> Each<ClaimResult> {
        let results = match requests {
            // The look costs such a request a tenth of its time. For many it costs next to nothing, and as long as they look,
            // more of them gather: without it, charges by 8 clients are slower by a tenth.
            [request] if self.new.load(Ordering::Relaxed) >= NEW_MIN => {
                vec![self.claim_or_look(conn, request)?]
            }
            _ => self.look_and_claim(conn, requests)?,
        };
        let is_new = |result: &&Result<_, _>| matches!(result, Ok(ClaimResult::ClaimWithData(..)));
        self.note(results.iter().filter(is_new).count(), results.len());
        Ok(results)
    }

    /// Moves the share of new keys by an eighth of the way to that of a batch. Batches that do so at a time may forget one.
    fn note(&self, new: usize, all: usize) {
        let share = u32::try_from(1_000 * new / all.max(1)).unwrap_or_default();
        self.new.store((7 * self.new.load(Ordering::Relaxed) + share).div_ceil(8), Ordering::Relaxed);
    }

    /// Claims a key, or finds out why it can't be claimed. The outer error leaves nothing claimed, or it's `outcome_unknown`.
    fn claim_or_look(
        &self,
        conn: &mut PgConnection,
        request: &Claimant,
    ) -> Result<Result<ClaimResult, Failure>, Failure> {
        let claim = store::prove_and_claim(conn, request, self.lease, self.select_sql, self.proof_sql);
        if let Some(claim) = claim.map_err(perhaps_committed)? {
            return Ok(Ok(with_data(claim)));
        }
        let found = self.look(conn, std::slice::from_ref(request))?.pop();
        Ok(found.transpose().map(|found| match found {
            // Another request was claiming it, or was answered and forgotten since.
            Some((Decision::Claim, _)) | None => ClaimResult::Contended,
            Some((decision, age)) => ClaimResult::Found(decision, age),
        }))
    }

    fn look_and_claim(&self, conn: &mut PgConnection, requests: &[Claimant]) -> Each<ClaimResult> {
        let decisions = self.look(conn, requests)?;
        let claimants: Vec<&Claimant> = decisions
            .iter()
            .zip(requests)
            .filter(|(decision, _)| matches!(decision, Ok((Decision::Claim, _))))
            .map(|(_, request)| request)
            .collect();
        let claimed = if claimants.is_empty() {
            Vec::new()
        } else {
            store::claim_all(conn, &claimants, self.lease, self.select_sql).map_err(perhaps_committed)?
        };
        let mut claimed = claimed.into_iter();
        let results = decisions.into_iter().map(|decision| {
            Ok(match decision? {
                (Decision::Claim, _) => claimed.next().flatten().map_or(ClaimResult::Contended, with_data),
                (decision, age) => ClaimResult::Found(decision, age),
            })
        });
        Ok(results.collect())
    }

    /// Looks keys up.
    fn look(&self, conn: &mut PgConnection, requests: &[Claimant]) -> Each<(Decision, Duration)> {
        let envelopes: Vec<&Envelope> = requests.iter().map(|request| &*request.envelope).collect();
        let stored = store::find_all(conn, &envelopes, self.proof_sql)?.into_iter().zip(requests);
        let decisions = stored.map(|(stored, request)| {
            let stored = stored?;
            let age = stored.as_ref().map(|stored| stored.age).unwrap_or_default();
            Ok((decide(stored, &request.policy), age))
        });
        Ok(decisions.collect())
    }
}

fn with_data((claim, read): ClaimWithData) -> ClaimResult {
    ClaimResult::ClaimWithData(Box::new(claim), read)
}

/// The failure of claims that commit by themselves.
fn perhaps_committed(failure: Failure) -> Failure {
    if is_outcome_open(&failure) { Failure::outcome_unknown(failure.detailed()) } else { failure }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_come_back_are_expected_soon_and_new_ones_after_a_while() {
        let claiming =
            Claiming { lease: Duration::ZERO, select_sql: "", proof_sql: "", new: AtomicU32::new(1_000) };
        let expects_new = || claiming.new.load(Ordering::Relaxed) >= NEW_MIN;
        claiming.note(1, 1);
        assert!(expects_new());
        claiming.note(1, 10);
        assert!(!expects_new());
        let batches = (1..).take_while(|_| {
            claiming.note(8, 8);
            !expects_new()
        });
        assert!(batches.count() < 10);
        for _ in 0..100 {
            claiming.note(8, 8);
        }
        assert_eq!(claiming.new.load(Ordering::Relaxed), 1_000);
        for _ in 0..100 {
            claiming.note(0, 8);
        }
        assert!(claiming.new.load(Ordering::Relaxed) < 10);
    }
}
