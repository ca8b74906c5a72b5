//! Access to the service, for the developers' commands.

use std::path::PathBuf;
use std::time::Duration;

use reqwest::{Method, RequestBuilder, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use url::Url;
use uuid::Uuid;

use crate::dev;

use super::exit::Stop;
use super::old_names;

/// Maximum wait for an answer.
const TIMEOUT: Duration = Duration::from_secs(15);

/// The service, and the credentials of its client.
#[derive(Debug, clap::Args)]
#[group(id = "service")]
pub struct Options {
    /// Address of the service; default: the one in dev.env
    #[arg(long, env = "ONCEPAY_URL")]
    url: Option<String>,

    /// An API key of the merchant; default: the one in dev.env
    #[arg(long, env = "ONCEPAY_API_KEY", hide_env_values = true)]
    api_key: Option<SecretString>,

    /// Folder in which `oncepay dev` stores dev.env
    #[arg(long, env = "ONCEPAY_DATA_DIR", default_value = ".oncepay")]
    data_dir: PathBuf,
}

impl Options {
    /// Reads a setting of dev.env.
    pub fn setting(&self, name: &str) -> Option<String> {
        dev::setting(&self.data_dir, name)
            .or_else(|| dev::setting(&self.data_dir, old_names::old_name(name)?))
    }

    /// Returns the given value, or else the setting of dev.env. The error is a sentence.
    pub fn required<T: Clone + From<String>>(&self, given: &Option<T>, name: &str) -> Result<T, String> {
        given.clone().or_else(|| self.setting(name).map(T::from)).ok_or_else(|| {
            format!(
                "There is no {name}, neither in the environment nor in {}. Start a service with `oncepay dev`, \
                 or name the folder of its dev.env with --data-dir.",
                self.data_dir.join("dev.env").display()
            )
        })
    }
}

/// A client of the service, as a merchant.
pub struct ApiClient {
    client: reqwest::Client,
    url: Url,
    api_key: SecretString,
}

impl ApiClient {
    /// Makes a client. The error is a sentence.
    pub fn new(options: &Options) -> Result<Self, String> {
        let url = options.required(&options.url, "ONCEPAY_URL")?;
        let url =
            Url::parse(&url).map_err(|error| format!("{url} isn't the address of a service: {error}."))?;
        let api_key = options.required(&options.api_key, "ONCEPAY_API_KEY")?;
        Ok(Self { client: client()?, url, api_key })
    }

    /// The merchant's key.
    pub fn api_key(&self) -> &SecretString {
        &self.api_key
    }

    /// URL of a path of the service.
    pub fn at(&self, path: &str) -> String {
        format!("{}{path}", self.url.as_str().trim_end_matches('/'))
    }

    /// Reads an object.
    pub async fn get(&self, path: &str) -> Result<Value, Unanswered> {
        answer(self.request(Method::GET, path)).await
    }

    /// Creates an object, with a new idempotency key.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, Unanswered> {
        let key = Uuid::new_v4().to_string();
        answer(self.request(Method::POST, path).header("Idempotency-Key", key).json(body)).await
    }

    /// The error of an answer that the service wouldn't give.
    pub fn is_no_service(&self) -> Unanswered {
        let sentence = format!("{} answers, but it isn't this service.", self.url);
        Unanswered { status: Some(StatusCode::OK), sentence }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, self.at(path)).bearer_auth(self.api_key.expose_secret())
    }
}

/// Makes an HTTP client that follows no redirects. The error is a sentence.
pub fn client() -> Result<reqwest::Client, String> {
    reqwest::Client::builder()
        .timeout(TIMEOUT)
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .map_err(|error| format!("Can't set up an HTTP client: {error}."))
}

/// Why the service didn't do what it was asked. `Display` is a sentence.
#[derive(Debug, thiserror::Error)]
#[error("{sentence}")]
pub struct Unanswered {
    /// Status of the answer, if there was one.
    status: Option<StatusCode>,
    sentence: String,
}

impl Unanswered {
    /// Whether the same request may succeed later.
    pub fn passes(&self) -> bool {
        self.status.is_none_or(|status| {
            status.is_server_error()
                || matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
        })
    }
}

impl From<Unanswered> for String {
    fn from(unanswered: Unanswered) -> Self {
        unanswered.sentence
    }
}

/// A service that refuses a value was handed what the user gave.
impl From<Unanswered> for Stop {
    fn from(Unanswered { status, sentence }: Unanswered) -> Self {
        match status {
            Some(StatusCode::UNPROCESSABLE_ENTITY) => Self::Usage(sentence),
            _ => Self::Failed(sentence),
        }
    }
}

/// Sends a request and reads a JSON answer.
pub async fn answer(request: RequestBuilder) -> Result<Value, Unanswered> {
    let answer = request
        .send()
        .await
        .map_err(|error| Unanswered { status: None, sentence: format!("{}.", cause(&error)) })?;
    let (status, mut url) = (answer.status(), answer.url().clone());
    url.set_query(None);
    let body = match answer.json::<Value>().await {
        Ok(body) => body,
        // Only whoever stands in front of the service answers so, or the answer was cut off.
        Err(_) if !status.is_success() => Value::Null,
        Err(error) => {
            let sentence = format!("The answer of {url} isn't JSON: {error}.");
            return Err(Unanswered { status: None, sentence });
        }
    };
    if status.is_success() {
        return Ok(body);
    }
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let of_field = |error: &Value| {
        format!("{} {}", text(&error["pointer"]).trim_start_matches('/'), text(&error["detail"]))
    };
    let said = match body["errors"].as_array() {
        Some(errors) => format!("{}.", errors.iter().map(of_field).collect::<Vec<_>>().join("; ")),
        None => text(&body["detail"]) + &text(&body["error"]["message"]),
    };
    let sentence = format!("{url} answers {status}: {said}").trim_end_matches(": ").to_owned();
    Err(Unanswered { status: Some(status), sentence })
}

/// The root cause of an error, with the address.
pub fn cause(error: &reqwest::Error) -> String {
    let mut source: &dyn std::error::Error = error;
    while let Some(deeper) = source.source() {
        source = deeper;
    }
    match error.url().cloned() {
        Some(mut url) => {
            url.set_query(None);
            format!("No answer from {url}: {source}")
        }
        None => source.to_string(),
    }
}
