//! The interface between the engine and its service.

use std::fmt::Debug;

use secrecy::SecretString;

use crate::error::failure::{AsFailure, Failure};

use super::reply::Reply;

/// A service whose requests the engine executes.
pub trait Host: Send + Sync + 'static {
    /// The error of its requests.
    type Error: HostError;

    /// The kinds of callers. The engine only hands them back.
    type Caller: Copy + Debug + PartialEq + Send + Sync + 'static;

    /// SQL: a query over `asked (merchant_id, key_sha256)` that returns at most one row, with a boolean
    /// `is_revoked`, if the caller's proof is known. The engine runs it in the statement that looks a key up,
    /// so that authentication costs no round trip of its own. Envelopes without a proof skip it.
    const PROOF_SQL: &'static str = "SELECT false AS is_revoked";

    /// Whether the processor can be called now. While it can't, the recovery worker leaves requests alone.
    fn is_processor_available(&self) -> bool {
        true
    }

    /// Notes that `proof`, with which a request came this far, isn't valid or not any more.
    fn disown(&self, _proof: &[u8]) {}

    /// Returns the secret that a reply was sealed with (see [`Reply::seal`]). `None` if it isn't available: the
    /// reply isn't sent then.
    fn reveal(&self, _seal: &str) -> Option<SecretString> {
        None
    }
}

/// An error of a host.
pub trait HostError: AsFailure + From<diesel::result::Error> + Debug + Send + Sync + 'static {
    /// Whether this error settles the request, so that it is stored and replayed.
    fn is_final(&self) -> bool;

    /// Name in rows and logs.
    fn code(&self) -> &'static str;

    /// Code and cause, for the log.
    fn detailed(&self) -> String;

    /// Writes the cause to the log.
    fn log(&self, request_id: &str);

    /// Makes the answer to the request `request_id` for `path`.
    fn reply(&self, request_id: &str, path: &str) -> Result<Reply, Failure>;
}

/// For hosts without errors of their own. Of these, only `precondition_failed` is final.
impl HostError for Failure {
    fn is_final(&self) -> bool {
        self.code().entry().is_final
    }

    fn code(&self) -> &'static str {
        Failure::code(self).as_str()
    }

    fn detailed(&self) -> String {
        Failure::detailed(self)
    }

    fn log(&self, request_id: &str) {
        Failure::log(self, request_id);
    }

    fn reply(&self, request_id: &str, path: &str) -> Result<Reply, Failure> {
        let problem = self.problem(request_id, path);
        Ok(Reply::problem(problem.status, &problem)?.with_notes(self.headers()))
    }
}
