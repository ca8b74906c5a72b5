//! Batches of calls in one statement, or in one transaction.
//!
//! A commit waits for the disk and a statement for the network, and both cost the same for one row as for
//! twenty. So calls that arrive while others are under way, or while a connection is fetched for them, are
//! collected and run together; a call that finds no other under way runs at once. No call waits for company:
//! under little load a batch is one call, and the higher the load, the less each call costs. If more calls wait
//! than fit into a batch, their parties take [turns](super::turns).
//!
//! Promised: a call never runs after its caller was told that it didn't. If a batch fails, each caller
//! retries alone, so that one bad call can't fail the others.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use diesel::PgConnection;
use prometheus::{Histogram, IntGauge};
use tokio::sync::oneshot;

use crate::base::metrics::GaugeGuard;
use crate::error::Failure;
use crate::storage::db::{Db, Silence};
use crate::storage::party::{self, Party};
use crate::storage::turns::{Item, Turns};

/// Maximum time that a call waits for the batch before it. As a rule one batch at a time is fastest (1.3
/// times four at a time, with 8 clients and with 64): calls gather meanwhile. But a batch that is stuck, on a
/// lock or a dead connection, must not hold up the rest, so a call that has waited that long starts another
/// batch beside it.
const PATIENCE: Duration = Duration::from_millis(50);

/// Time after which a batch gives its connection back although calls wait: others may want it, too.
///
/// Until then it goes on with the calls that have arrived meanwhile. A connection for each batch would cost two changes of
/// threads between any two of them, while the database has nothing to do (with 8 clients, a sixth of the charges).
const STAY: Duration = Duration::from_millis(20);

/// Maximum number of concurrent batches, unless the batcher has another.
const BATCHES_MAX: usize = 4;

type Outputs<O> = Vec<oneshot::Sender<BatchResult<O>>>;
type Work<I, O> = Box<dyn Fn(&mut PgConnection, &[I]) -> Result<Vec<O>, Failure> + Send + Sync>;

/// Metrics of a batcher.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Batch sizes.
    pub sizes: Histogram,
    /// Seconds that each call has waited for its batch.
    pub wait_seconds: Histogram,
    /// Calls that wait for their batch.
    pub waiting: IntGauge,
}

/// Batches calls that take an `I` and return an `O`.
pub struct Batcher<I, O> {
    db: Db,
    size_max: usize,
    batches_max: usize,
    metrics: Metrics,
    work: Work<I, O>,
    queue: Mutex<Queue<I, O>>,
}

struct Queue<I, O> {
    calls: Turns<Call<I, O>>,
    batches: usize,
}

struct Call<I, O> {
    input: I,
    asked: Instant,
    /// Set by the first of these: the batch that runs the call, or the caller that gives up.
    is_taken: Arc<AtomicBool>,
    output: oneshot::Sender<BatchResult<O>>,
    _waiting: GaugeGuard,
}

impl<I, O> Item for Call<I, O> {
    fn is_wanted(&self) -> bool {
        !self.is_taken.load(Ordering::Acquire) && !self.output.is_closed()
    }
}

/// Result of a call.
enum BatchResult<O> {
    Done(O),
    /// No connection was free in time.
    Unavailable(String),
    /// The database didn't answer in time.
    Silent(Silence),
    /// The batch says that it isn't known whether it has taken effect.
    Unknown(String),
    /// The whole batch failed, perhaps because of another call.
    Failed,
}

impl<I: Send + Sync + 'static, O: Send + 'static> Batcher<I, O> {
    /// Makes a batcher that runs `work` on up to `size_max` calls at a time. `work` must return an output per
    /// input, in their order.
    pub fn new(
        db: Db,
        size_max: usize,
        metrics: Metrics,
        work: impl Fn(&mut PgConnection, &[I]) -> Result<Vec<O>, Failure> + Send + Sync + 'static,
    ) -> Arc<Self> {
        Self::with_batches_max(BATCHES_MAX, db, size_max, metrics, work)
    }

    /// Makes a batcher that runs up to `batches_max` batches at a time. Otherwise like [`new`](Self::new).
    pub fn with_batches_max(
        batches_max: usize,
        db: Db,
        size_max: usize,
        metrics: Metrics,
        work: impl Fn(&mut PgConnection, &[I]) -> Result<Vec<O>, Failure> + Send + Sync + 'static,
    ) -> Arc<Self> {
        let queue = Mutex::new(Queue { calls: Turns::default(), batches: 0 });
        Arc::new(Self { db, size_max, batches_max, metrics, work: Box::new(work), queue })
    }

    /// Runs the call of `party` in the next batch. `None` if the batch failed: retry it alone, and expect that it may
    /// already have taken effect.
    ///
    /// Errors: `database_unavailable` as with [`Db::run`]; `outcome_unknown` if the batch failed with that, or
    /// was given up before its end.
    pub async fn call(self: &Arc<Self>, party: Party, input: I) -> Result<Option<O>, Failure> {
        let (output, mut result) = oneshot::channel();
        let is_taken = Arc::new(AtomicBool::new(false));
        let call = Call {
            input,
            asked: Instant::now(),
            is_taken: Arc::clone(&is_taken),
            output,
            _waiting: GaugeGuard::new(&self.metrics.waiting),
        };
        self.queue().calls.push(party, call);
        self.start_batch_beside(0);
        let mut answered = tokio::time::timeout(PATIENCE, &mut result).await;
        if answered.is_err() && !is_taken.load(Ordering::Acquire) {
            self.start_batch_beside(self.batches_max - 1);
            answered = tokio::time::timeout(self.db.acquire_timeout(), &mut result).await;
        }
        let result = match answered {
            Ok(result) => result,
            Err(_) if !is_taken.swap(true, Ordering::AcqRel) => {
                return Err(Failure::DatabaseUnavailable("too many calls are waiting".into()));
            }
            Err(_) => result.await,
        };
        match result {
            Ok(BatchResult::Done(output)) => Ok(Some(output)),
            Ok(BatchResult::Unavailable(cause)) => Err(Failure::DatabaseUnavailable(cause.into())),
            Ok(BatchResult::Silent(silence)) => Err(Failure::DatabaseUnavailable(silence.into())),
            Ok(BatchResult::Unknown(cause)) => Err(Failure::outcome_unknown(cause)),
            Ok(BatchResult::Failed) => Ok(None),
            // The sender is dropped when the service stops, or by a panic: perhaps after the commit.
            Err(_) => Err(Failure::outcome_unknown("the batch was given up")),
        }
    }

    /// Whether no batch is under way, so that a call would run at once.
    pub fn is_idle(&self) -> bool {
        self.queue().batches == 0
    }

    /// Starts a batch, unless more than `others` are under way.
    fn start_batch_beside(self: &Arc<Self>, others: usize) {
        let mut queue = self.queue();
        if queue.batches <= others {
            queue.batches += 1;
            let batch = Batch { batcher: Arc::clone(self), is_over: false };
            // On the system's thread: neither this caller's end nor that of its worker may end the others'
            // calls.
            actix_web::rt::System::current().arbiter().spawn(batch.run());
        }
    }
}

impl<I, O> Batcher<I, O> {
    fn queue(&self) -> MutexGuard<'_, Queue<I, O>> {
        // Each change of the queue is atomic, so a panic elsewhere can't have left a partial one.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to run a batch, which is returned however the batch ends.
struct Batch<I, O> {
    batcher: Arc<Batcher<I, O>>,
    is_over: bool,
}

impl<I, O> Drop for Batch<I, O> {
    fn drop(&mut self) {
        if !self.is_over {
            self.batcher.queue().batches -= 1;
        }
    }
}

impl<I: Send + Sync + 'static, O: Send + 'static> Batch<I, O> {
    /// Runs calls until there are none.
    async fn run(mut self) {
        while !self.is_over {
            let (batcher, taken) = (Arc::clone(&self.batcher), Taken::default());
            let under_way = taken.clone();
            let ran = self.batcher.db.run(move |conn| batcher.run_calls(conn, &under_way));
            match party::within(Party::First, ran).await {
                Ok(()) => {}
                // Without a connection, none was taken: those that would have been are told.
                Err(failure) => fail(taken.take().unwrap_or_else(|| self.batcher.take().1), &failure),
            }
            self.end_without_calls();
        }
    }

    /// Ends the batch if no call waits. The next caller, which may arrive right after this, starts another one.
    fn end_without_calls(&mut self) {
        let mut queue = self.batcher.queue();
        if queue.calls.is_empty() {
            queue.batches -= 1;
            self.is_over = true;
        }
    }
}

impl<I: Send + Sync + 'static, O: Send + 'static> Batcher<I, O> {
    /// Runs calls until none waits, or the connection should be given back. Each time takes those that have arrived by
    /// then. `under_way` has the outputs of those that have begun, until their callers are told.
    fn run_calls(&self, conn: &mut PgConnection, under_way: &Taken<O>) -> Result<(), Failure> {
        let began = Instant::now();
        loop {
            let (inputs, outputs) = self.take();
            if inputs.is_empty() {
                return Ok(());
            }
            self.metrics.sizes.observe(inputs.len() as f64);
            under_way.put(outputs);
            let done = (self.work)(conn, &inputs)?;
            // None if they have been told already that it takes too long.
            for (output, done) in under_way.take().into_iter().flatten().zip(done) {
                // A caller that has hung up doesn't need the result.
                let _ = output.send(BatchResult::Done(done));
            }
            if began.elapsed() > STAY {
                return Ok(());
            }
        }
    }

    /// Takes the calls of the next batch, whose callers still wait.
    fn take(&self) -> (Vec<I>, Outputs<O>) {
        let mut queue = self.queue();
        let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
        while inputs.len() < self.size_max
            && let Some(call) = queue.calls.pop()
        {
            // The caller may have given up since the queue looked.
            if !call.is_taken.swap(true, Ordering::AcqRel) {
                self.metrics.wait_seconds.observe(call.asked.elapsed().as_secs_f64());
                inputs.push(call.input);
                outputs.push(call.output);
            }
        }
        (inputs, outputs)
    }
}

/// The outputs of the calls that a batch has begun. Whoever takes them tells the callers.
struct Taken<O>(Arc<Mutex<Option<Outputs<O>>>>);

impl<O> Taken<O> {
    fn put(&self, outputs: Outputs<O>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(outputs);
    }

    fn take(&self) -> Option<Outputs<O>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl<O> Default for Taken<O> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<O> Clone for Taken<O> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

/// Tells the callers of a batch that failed.
fn fail<O>(outputs: Outputs<O>, failure: &Failure) {
    let result = || match failure {
        Failure::DatabaseUnavailable(cause) if !cause.is::<diesel::result::Error>() => {
            match cause.downcast_ref::<Silence>() {
                Some(silence) => BatchResult::Silent(*silence),
                None => BatchResult::Unavailable(cause.to_string()),
            }
        }
        Failure::OutcomeUnknown { cause, .. } => BatchResult::Unknown(cause.to_string()),
        _ => BatchResult::Failed,
    };
    log::debug!("{} calls failed together: {}", outputs.len(), failure.detailed());
    for output in outputs {
        let _ = output.send(result());
    }
}
