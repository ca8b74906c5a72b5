//! A processor inside this process, for development, tests and benchmarks.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use serde::Serialize;

use crate::base::money::Money;

use super::test_cards::TestCard;
use super::{
    Authorization, CallRefusal, Decision, Decline, Processor, ProcessorCall, ProcessorError,
    ProcessorOperation, RefusalReason,
};

/// A processor whose answers are a pure function of the call, attempt number included. So it has no state to
/// lose in a crash, and any number of instances agree.
pub struct Sandbox {
    journal: Journal,
    slowness: Duration,
}

/// Destination of the call records.
enum Journal {
    Off,
    Memory(Mutex<Vec<CallRecord>>),
    File(Mutex<File>),
}

/// A call as the processor saw it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CallRecord {
    /// `authorize`, `capture`, `void`, `refund` or `payout`.
    pub call: &'static str,
    /// Our idempotency key towards the processor.
    pub key: String,
    /// Attempt of the request.
    pub attempt: u32,
    /// `traceparent` of the call.
    pub traceparent: String,
    /// Amount with currency, if the call has one.
    pub amount: Option<String>,
    /// True if money was held or moved (for the first call with this key) or the earlier effect was confirmed
    /// (for a repetition).
    pub took_effect: bool,
}

/// Default duration of `pm_card_slow`.
const SLOWNESS: Duration = Duration::from_secs(2);

impl Sandbox {
    /// Makes a sandbox that records nothing.
    pub fn new() -> Self {
        Self::noting(Journal::Off)
    }

    /// Makes a sandbox that remembers every call, for tests in the same process.
    pub fn recording() -> Self {
        Self::noting(Journal::Memory(Mutex::new(Vec::new())))
    }

    /// Makes a sandbox that appends every call to a file as a line of JSON.
    pub fn with_call_log(path: &Path) -> std::io::Result<Self> {
        let file = File::options().create(true).append(true).open(path)?;
        Ok(Self::noting(Journal::File(Mutex::new(file))))
    }

    fn noting(journal: Journal) -> Self {
        Self { journal, slowness: SLOWNESS }
    }

    /// Sets the duration of `pm_card_slow`.
    pub fn with_slowness(self, slowness: Duration) -> Self {
        Self { slowness, ..self }
    }

    /// Returns the calls so far of a [`recording`](Self::recording) sandbox.
    pub fn calls(&self) -> Vec<CallRecord> {
        match &self.journal {
            Journal::Memory(calls) => calls.lock().expect("no holder panics").clone(),
            _ => Vec::new(),
        }
    }

    fn note(&self, name: &'static str, call: &ProcessorCall, amount: Option<Money>, took_effect: bool) {
        let record = || CallRecord {
            call: name,
            key: call.key.clone(),
            attempt: call.attempt,
            traceparent: call.trace.child().to_string(),
            amount: amount.map(|amount| amount.to_string()),
            took_effect,
        };
        match &self.journal {
            Journal::Off => {}
            Journal::Memory(calls) => calls.lock().expect("no holder panics").push(record()),
            Journal::File(file) => {
                let line = serde_json::to_string(&record()).expect("a record is plain data");
                // One write per line, so that lines of several processes don't mix.
                let written =
                    file.lock().expect("no holder panics").write_all(format!("{line}\n").as_bytes());
                if let Err(error) = written {
                    log::error!("the sandbox can't write its journal: {error}");
                }
            }
        }
    }
}

impl Default for Sandbox {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl Processor for Sandbox {
    fn check_payment_method(&self, token: &str) -> Result<(), String> {
        TestCard::check(token)
    }

    async fn authorize(
        &self,
        call: &ProcessorCall,
        amount: Money,
        payment_method: &str,
        _capture: Option<&ProcessorCall>,
    ) -> Result<Authorization, ProcessorError> {
        // The token was checked at the door. An unknown one is left over from before a change of the
        // processor.
        let card = payment_method.parse().map_err(|_| {
            ProcessorError::Refused(CallRefusal::new("payment_method_unknown", RefusalReason::Other))
        })?;
        if card == TestCard::Slow {
            tokio::time::sleep(self.slowness).await;
        }
        let first = call.attempt == 1;
        let decided = |decision| Ok(Authorization { id: format!("auth_{}", call.key), decision });
        let (took_effect, answer) = match card {
            TestCard::Declined => (false, decided(Decision::Declined(Decline::generic()))),
            TestCard::InsufficientFunds => {
                (false, decided(Decision::Declined(Decline::insufficient_funds())))
            }
            TestCard::Async => (false, decided(Decision::Pending)),
            TestCard::Timeout if first => (true, Err(ProcessorError::AnswerLost)),
            TestCard::ErrorOnce if first => (false, Err(ProcessorError::Failed)),
            TestCard::Visa | TestCard::Slow | TestCard::Timeout | TestCard::ErrorOnce => {
                (true, decided(Decision::Approved))
            }
        };
        self.note("authorize", call, Some(amount), took_effect);
        answer
    }

    async fn capture(
        &self,
        call: &ProcessorCall,
        _authorization_id: &str,
        amount: Money,
    ) -> Result<(), ProcessorError> {
        self.note("capture", call, Some(amount), true);
        Ok(())
    }

    async fn void(&self, call: &ProcessorCall, _authorization_id: &str) -> Result<(), ProcessorError> {
        self.note("void", call, None, true);
        Ok(())
    }

    async fn refund(
        &self,
        call: &ProcessorCall,
        _authorization_id: &str,
        amount: Money,
    ) -> Result<(), ProcessorError> {
        self.note("refund", call, Some(amount), true);
        Ok(())
    }

    async fn payout(
        &self,
        call: &ProcessorCall,
        amount: Money,
        _destination: &str,
    ) -> Result<(), ProcessorError> {
        self.note("payout", call, Some(amount), true);
        Ok(())
    }

    /// Always returns `None`, since the sandbox remembers nothing. A repeated call returns its outcome.
    async fn find(&self, _call: &ProcessorCall) -> Result<Option<ProcessorOperation>, ProcessorError> {
        Ok(None)
    }
}
