//! Claims and completions of many requests for one operation at a time.

use std::sync::Arc;
use std::time::Duration;

use diesel::PgConnection;

use super::metrics::Metrics;
use crate::error::Error;
use crate::storage::batch::Batcher;
use crate::storage::db::Db;

use super::decision::{Decision, decide};
use super::operation::Together;
use super::request::Envelope;
use super::store::{self, Answer, Claim, Claimant, Completion};

/// What came of a look at a key.
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
    pub claims: Arc<Batcher<Claimant, Result<Looked, Error>>>,
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
                move |conn, requests| look(conn, requests, lease, reads),
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
    requests: &[Claimant],
    lease: Duration,
    reads: &'static str,
) -> Result<Vec<Result<Looked, Error>>, Error> {
    let envelopes: Vec<&Envelope> = requests.iter().map(|request| &*request.envelope).collect();
    let decisions: Vec<Result<Decision, Error>> = store::find_all(conn, &envelopes)?
        .into_iter()
        .zip(requests)
        .map(|(stored, request)| Ok(decide(stored?, &request.policy)))
        .collect();
    let claimants: Vec<&Claimant> = decisions
        .iter()
        .zip(requests)
        .filter(|(decision, _)| matches!(decision, Ok(Decision::Claim)))
        .map(|(_, request)| request)
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
