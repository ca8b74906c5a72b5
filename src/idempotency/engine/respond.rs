//! The answer to a request, as plain data.

use crate::error::failure::Failure;
use crate::idempotency::host::Host;
use crate::idempotency::policy::Enforcement;
use crate::idempotency::request::IdempotentRequest;
use crate::idempotency::store::Answer;

use super::Engine;

/// An answer as it's sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// HTTP status.
    pub status: u16,
    /// Headers. Each name occurs once.
    pub headers: Vec<(String, String)>,
    /// Bytes of the body.
    pub body: Vec<u8>,
}

impl Response {
    fn set(&mut self, name: &str, value: impl Into<String>) {
        self.headers.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
        self.headers.push((name.to_owned(), value.into()));
    }
}

impl<H: Host> Engine<H> {
    /// Makes the response with an answer. Errors: `secret_unavailable`.
    pub(super) fn respond<O>(
        &self,
        request: &IdempotentRequest<O>,
        answer: &Answer,
        replayed: bool,
    ) -> Result<Response, Failure> {
        let (headers, body) = answer.reply.unseal(|seal| self.inner.host.reveal(seal))?;
        let mut response = Response { status: answer.reply.status, headers: Vec::new(), body };
        for (name, value) in headers {
            response.set(name, value);
        }
        if !replayed {
            for (name, value) in &answer.reply.notes {
                response.set(name, value.as_str());
            }
        }
        // Where keys have no effect, the answer must not look as if they had.
        if request.treatment.enforcement == Enforcement::Enforce {
            response.set("Idempotency-Key", request.envelope.key.as_str());
            response.set("Idempotent-Replayed", if replayed { "true" } else { "false" });
            // An HTTP date, as in `Expires` (RFC 9110, section 5.6.7).
            let expires = answer.expires_at.format("%a, %d %b %Y %H:%M:%S GMT").to_string();
            response.set("Idempotency-Expires", expires);
        }
        if replayed {
            response.set("Original-Request-Id", answer.request_id.as_str());
            if let Some(wait) = request.treatment.wait {
                response.set("Preference-Applied", format!("wait={}", wait.as_secs()));
            }
        }
        Ok(response)
    }
}
