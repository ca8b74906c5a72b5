//! Sends the outbox, as defined by [Standard Webhooks](https://www.standardwebhooks.com).

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use reqwest::header::CONTENT_TYPE;
use secrecy::{ExposeSecret, SecretBox, SecretString};
use sha2::Sha256;
use url::Url;

use crate::base::time;
use crate::error::Failure;
use crate::storage::db::Db;

use super::outbox::{self, ClaimedEvent};

/// Maximum wait for the receiver's answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after the first failure. It doubles with each.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// Maximum pause.
const PAUSE_MAX: Duration = Duration::from_secs(60 * 60);
/// Interval at which an idle sender looks for events.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Prefix of a signing secret.
const SECRET_PREFIX: &str = "whsec_";

/// Sends events to one receiver.
pub(super) struct Sender {
    db: Db,
    client: reqwest::Client,
    url: Url,
    secret: SecretBox<Vec<u8>>,
}

impl Sender {
    /// Makes a sender. The error is a sentence.
    pub(super) fn new(db: Db, url: Url, secret: &SecretString) -> Result<Self, String> {
        let secret = secret
            .expose_secret()
            .strip_prefix(SECRET_PREFIX)
            .and_then(|secret| STANDARD.decode(secret).ok())
            .filter(|secret| !secret.is_empty())
            .ok_or("The webhook secret must be whsec_ and base64.")?;
        let client = reqwest::Client::builder()
            .timeout(ANSWER_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()
            .map_err(|error| format!("Can't make an HTTP client: {error}."))?;
        Ok(Self { db, client, url, secret: SecretBox::new(Box::new(secret)) })
    }

    /// Sends due events, one after the other, so that they arrive in order, unless faults or failures prevent
    /// it. Doesn't return.
    pub(super) async fn keep_sending(self) {
        loop {
            match self.send_next().await {
                Ok(true) => {}
                Ok(false) => tokio::time::sleep(LOOK_EVERY).await,
                Err(error) => {
                    log::warn!("the webhook sender has no database: {}", error.detailed());
                    tokio::time::sleep(PAUSE_MIN).await;
                }
            }
        }
    }

    /// Sends the next due event. Returns whether there was one. No transaction is open during the sending:
    /// the claim keeps others away, and it expires if the sender dies.
    async fn send_next(&self) -> Result<bool, Failure> {
        let Some(event) = self.db.run_retrying(|conn| outbox::claim(conn).map_err(Failure::from)).await?
        else {
            return Ok(false);
        };
        let sent = self.send(&event).await;
        if let Err(error) = &sent {
            log::info!("{} hasn't arrived: {error}", event.id);
        }
        self.db
            .run_retrying(move |conn| match sent {
                Ok(()) => outbox::delivered(conn, &event).map_err(Failure::from),
                Err(_) => outbox::failed(conn, &event, pause_after(event.attempt)).map_err(Failure::from),
            })
            .await?;
        Ok(true)
    }

    /// Sends an event. The error is for the log. Redirects are errors too: following one would sign for
    /// another receiver.
    async fn send(&self, event: &ClaimedEvent) -> Result<(), String> {
        #[expect(clippy::disallowed_methods, reason = "the simulator's clock isn't the service's")]
        let timestamp = chrono::Utc::now().timestamp();
        let answer = self
            .client
            .post(self.url.clone())
            .header(CONTENT_TYPE, "application/json")
            .header("webhook-id", &event.id)
            .header("webhook-timestamp", timestamp)
            .header("webhook-signature", sign(self.secret.expose_secret(), &event.id, timestamp, &event.body))
            .body(event.body.clone())
            .send()
            .await
            .map_err(|error| error.to_string())?;
        let status = answer.status();
        if status.is_success() { Ok(()) } else { Err(format!("the receiver answered {status}")) }
    }
}

/// Signs an event that is sent at `timestamp` (seconds since 1970).
fn sign(secret: &[u8], id: &str, timestamp: i64, body: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("a key may have any length");
    mac.update(format!("{id}.{timestamp}.{body}").as_bytes());
    format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
}

fn pause_after(attempt: i32) -> Duration {
    time::backoff(PAUSE_MIN, u32::try_from(attempt - 1).unwrap_or(0), PAUSE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the Standard Webhooks specification.
    #[test]
    fn signatures_are_those_of_the_specification() {
        let secret = STANDARD.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let signature =
            sign(&secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, r#"{"test": 2432232314}"#);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn pauses_grow_up_to_a_bound() {
        for (attempt, nominal_s) in [(1, 1.0), (2, 2.0), (5, 16.0), (13, 3600.0), (i32::MAX, 3600.0)] {
            let pause = pause_after(attempt).as_secs_f64();
            assert!((nominal_s * 0.75..=nominal_s).contains(&pause), "{pause} after {attempt}");
        }
    }
}
