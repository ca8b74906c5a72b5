//! `oncepay listen`: shows a merchant's events as they happen and forwards them to a server on the
//! developer's machine, signed as the service would sign them.
//!
//! It [polls](super::feed) the service for new events, so it needs no endpoint, no open port and no address that the service
//! can reach. It doesn't retry a failed forward: that is for real endpoints. `oncepay trigger` creates events
//! to listen to.

use std::time::Instant;

use hmac::{Hmac, KeyInit, Mac};
use reqwest::header::CONTENT_TYPE;
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use sha2::Sha256;
use url::Url;

use super::client::{self, ApiClient, cause};
use super::events;
use super::feed::{Feed, until_signal};
use crate::base::signature::{self, Secret};
use crate::base::time;
use crate::events::EventType;

/// Options of the `listen` command.
#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    service: client::Options,

    /// URL to which events are posted, such as `http://localhost:3000/hook`. Without it, events are only
    /// shown
    #[arg(long, value_parser = http_url)]
    forward_to: Option<Url>,

    /// Event types to show, separated by commas; default: all
    #[arg(long, value_delimiter = ',')]
    events: Vec<EventType>,

    /// Secret that signs the messages: `whsec_` and base64. Default: a secret that stays the same for the API
    /// key
    #[arg(long, env = "ONCEPAY_LISTEN_SECRET", hide_env_values = true)]
    secret: Option<SecretString>,
}

fn http_url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
    url.ok_or_else(|| "it must be like http://localhost:3000/hook".to_owned())
}

/// Listens until SIGINT or SIGTERM. The error is a sentence.
pub fn run(options: Options) -> Result<(), String> {
    let api = ApiClient::new(&options.service)?;
    let secret = match &options.secret {
        Some(secret) => Secret::parse(secret.expose_secret())?,
        None => secret_for(api.api_key()),
    };
    let receiver = match options.forward_to {
        Some(url) => Some(Receiver { client: client::client()?, url, secret }),
        None => None,
    };
    actix_web::rt::System::new().block_on(async move {
        let ended = until_signal(listen(&api, receiver.as_ref(), &options.events)).await?;
        ended.unwrap_or(Ok(()))
    })
}

/// Derives a secret from an API key. It never changes, so the receiver keeps its settings from start to
/// start.
fn secret_for(api_key: &SecretString) -> Secret {
    let mut mac = Hmac::<Sha256>::new_from_slice(api_key.expose_secret().as_bytes())
        .expect("HMAC takes keys of any length");
    mac.update(b"oncepay listen");
    Secret::new(&mac.finalize().into_bytes())
}

async fn listen(api: &ApiClient, receiver: Option<&Receiver>, wanted: &[EventType]) -> Result<(), String> {
    let mut feed = Feed::open(api, "now").await?;
    match receiver {
        Some(receiver) => println!(
            "Listening. Events go to {}, signed with {}",
            receiver.url,
            receiver.secret.reveal().expose_secret()
        ),
        None => println!("Listening. To forward events, use --forward-to URL."),
    }
    let is_wanted =
        |event: &&Value| wanted.is_empty() || wanted.iter().any(|kind| event["type"] == kind.as_str());
    let show_all = async |events: &[Value]| {
        for event in events.iter().filter(is_wanted) {
            show(event, receiver).await;
        }
        true
    };
    Ok(feed.follow(api, show_all).await?)
}

async fn show(event: &Value, receiver: Option<&Receiver>) {
    let line = events::line(event);
    match receiver {
        None => println!("{line}  {}", event["data"]["id"].as_str().unwrap_or_default()),
        Some(receiver) => println!("{line}  {}", receiver.send(event).await),
    }
}

fn id_of(event: &Value) -> &str {
    event["id"].as_str().unwrap_or_default()
}

/// A server on the developer's machine.
struct Receiver {
    client: reqwest::Client,
    url: Url,
    secret: Secret,
}

impl Receiver {
    /// Posts an event and describes the outcome.
    async fn send(&self, event: &Value) -> String {
        let (id, timestamp) = (id_of(event), time::now().timestamp());
        let body = serde_json::json!({
            "id": id, "type": event["type"], "timestamp": event["created_at"], "data": event["data"],
        });
        let body = body.to_string();
        let started = Instant::now();
        let answer = self
            .client
            .post(self.url.clone())
            .header(CONTENT_TYPE, "application/json")
            .header(signature::ID, id)
            .header(signature::TIMESTAMP, timestamp)
            .header(signature::SIGNATURE, self.secret.sign(id, timestamp, body.as_bytes()))
            .body(body)
            .send()
            .await;
        match answer {
            Ok(answer) => format!("{} in {} ms", answer.status().as_u16(), started.elapsed().as_millis()),
            Err(error) => cause(&error),
        }
    }
}
