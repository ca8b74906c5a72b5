//! Claims and completions of many requests for one operation at a time.

use std::sync::Arc;
use std::time::Duration;

use diesel::PgConnection;

use crate::batch::Batcher;
use crate::db::Db;
use crate::error::Error;
use crate::metrics::Metrics;

use super::decision::{Decision, decide};
use super::operation::Together;
use super::policy::Policy;
use super::request::{Envelope, Resource};
use super::store::{self, Answer, Claim, Claimant, Completion};

/// A request that looks for its answer, or wants to claim its key.
pub struct Candidate {
    pub envelope: Arc<Envelope>,
    pub operation: &'static str,
    pub resource: Resource,
    pub policy: Arc<Policy>,
}

/// What came of that.
pub enum Looked {
    /// It has claimed its key, and this was read with it.
    Claimed(Claim, Option<serde_json::Value>),
    /// The key isn't new, and this is to be done.
    Found(Decision),
    /// Somebody else is claiming it at this moment.
    Contended,
}

/// The batchers of one operation.
pub struct Batchers {
    pub claims: Arc<Batcher<Candidate, Result<Looked, Error>>>,
    /// Return `None` for a request that has to find out by itself why it wasn't completed.
    pub completions: Arc<Batcher<Completion, Option<Arc<Answer>>>>,
}

impl Batchers {
    /// For an operation whose claims have a `lease`; `size_max` requests at a time.
    pub fn new(db: &Db, together: Together, lease: Duration, size_max: usize, metrics: &Metrics) -> Self {
        let sizes = |step| metrics.batch_sizes.with_label_values(&[step]);
        let waits = |step| metrics.batch_wait_seconds.with_label_values(&[step]);
        let Together { reads, writes } = together;
        Self {
            claims: Batcher::new(
                db.clone(),
                size_max,
                sizes("claim"),
                waits("claim"),
                move |conn, candidates| look(conn, candidates, lease, reads),
            ),
            completions: Batcher::new(
                db.clone(),
                size_max,
                sizes("finish"),
                waits("finish"),
                move |conn, completions| store::complete_all(conn, completions, writes),
            ),
        }
    }
}

/// Looks all keys up, and claims those that are new: one round trip, or two.
fn look(
    conn: &mut PgConnection,
    candidates: &[Candidate],
    lease: Duration,
    reads: &'static str,
) -> Result<Vec<Result<Looked, Error>>, Error> {
    let envelopes: Vec<&Envelope> = candidates.iter().map(|candidate| &*candidate.envelope).collect();
    let decisions: Vec<Result<Decision, Error>> = store::find_all(conn, &envelopes)?
        .into_iter()
        .zip(candidates)
        .map(|(stored, candidate)| Ok(decide(stored?, &candidate.policy)))
        .collect();
    let claimants: Vec<Claimant<'_>> = decisions
        .iter()
        .zip(candidates)
        .filter(|(decision, _)| matches!(decision, Ok(Decision::Claim)))
        .map(|(_, candidate)| Claimant {
            envelope: &candidate.envelope,
            operation: candidate.operation,
            resource: candidate.resource,
            policy: &candidate.policy,
        })
        .collect();
    let claimed =
        if claimants.is_empty() { Vec::new() } else { store::claim_all(conn, &claimants, lease, reads)? };
    let mut claimed = claimed.into_iter();
    let looked = decisions.into_iter().map(|decision| {
        Ok(match decision? {
            Decision::Claim => match claimed.next().flatten() {
                Some((claim, read)) => Looked::Claimed(claim, read),
                None => Looked::Contended,
            },
            decision => Looked::Found(decision),
        })
    });
    Ok(looked.collect())
}
