//! What the engine is handed of the service that it works for.

use std::fmt::Debug;

use secrecy::SecretString;

use crate::error::failure::{Failing, Failure};

use super::reply::Reply;

/// A service whose requests the engine executes.
pub trait Host: Send + Sync + 'static {
    /// Why one of its requests can fail.
    type Error: HostError;

    /// The kinds of callers that it tells apart. The engine only hands them back to it.
    type Caller: Copy + Debug + PartialEq + Send + Sync + 'static;

    /// SQL: a query over `asked (merchant_id, key_sha256)` that returns at most one row, with a boolean `is_revoked`, if
    /// the caller's proof is known. The engine runs it in the statement that looks a key up, so that authentication costs
    /// no round trip of its own. Envelopes without a proof need none.
    const PROOF_SQL: &'static str = "SELECT false AS is_revoked";

    /// Whether it makes sense to call the processor now. While it doesn't, the recovery worker leaves requests alone.
    fn is_processor_available(&self) -> bool {
        true
    }

    /// The secret that a reply was sealed with (see [`Reply::seal`]).
    fn reveal(&self, _seal: &str) -> Option<SecretString> {
        None
    }
}

/// An error of a host.
pub trait HostError: Failing + From<diesel::result::Error> + Debug + Send + Sync + 'static {
    /// Whether this settles the request, so that it is kept and replayed.
    fn is_final(&self) -> bool;

    /// Its name in rows and logs.
    fn code(&self) -> &'static str;

    /// Code and cause, for the log.
    fn detailed(&self) -> String;

    /// Writes the cause to the log.
    fn log(&self, request_id: &str);

    /// The answer to the request `request_id` for `path`.
    fn reply(&self, request_id: &str, path: &str) -> Result<Reply, Failure>;
}

/// For hosts that have no errors of their own: none of these is final.
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
