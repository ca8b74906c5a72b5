mod api;

use std::time::{Duration, Instant, SystemTime};
use std::{fs::File, io, io::Write, path::Path, path::PathBuf};

pub use api::*;
use reqwest::{Method, blocking, header, redirect::Policy};
use serde::{Deserialize, Serialize, de::DeserializeOwned as Owned};
use sha2::{Digest, Sha256};

/// A final answer: its status, its `Location`, and its body.
type Answer = (u16, Option<String>, String);
/// What is kept of a name. Without an answer, the request may have been sent, and may have taken effect.
#[derive(Clone, Deserialize, Serialize)]
struct Entry {
    name: String,
    key: String,
    fingerprint: String,
    answer: Option<Answer>,
}

pub type Result<T, E = Error> = std::result::Result<T, E>;
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the name stands for another request; nothing was sent")]
    NameReused,
    #[error("refused, with a problem unless by a proxy: {status} {problem:?}")]
    Refused { status: u16, problem: Option<Box<Problem>> },
    #[error("the request may have taken effect, and isn't sent again: look at {0:?}")]
    OutcomeUnknown(Option<String>),
    #[error("the outcome is unknown so far: ask again under the same name, now or after a restart ({0})")]
    Unanswered(String),
    #[error("the store failed, or a body isn't of its type: {0}")]
    Io(#[from] io::Error),
}

/// Makes each request that changes something by a name of your own for it, such as an order's id. However often it's
/// made under its name, in this process or a later one, it has one key: it takes effect once, and has one answer.
pub struct Oncepay {
    http: blocking::Client,
    url: String,
    api_key: String,
    folder: Option<PathBuf>,
    pub attempt_timeout: Duration, // 15 seconds: the service answers within 10.
    pub give_up_after: Duration,   // 60 seconds.
}

impl Oncepay {
    /// Keeps keys in `folder`, which exists on a local POSIX file system. Without one, a key lives as long as the call.
    pub fn new(url: &str, api_key: &str, folder: Option<PathBuf>) -> Self {
        let http = blocking::Client::builder().redirect(Policy::none()).build().expect("valid settings");
        let (attempt_timeout, give_up_after) = (Duration::from_secs(15), Duration::from_secs(60));
        Self { http, url: url.into(), api_key: api_key.into(), folder, attempt_timeout, give_up_after }
    }

    /// Makes a request that has no method of its own, such as one with a query.
    pub fn once<T: Owned>(&self, name: &str, method: Method, path: &str, body: impl Serialize) -> Result<T> {
        let body = serde_json::to_value(body).map_err(io::Error::from)?;
        // One spelling for equal bodies: the members of a `Value` are sorted.
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let (status, location, body) = self.send(name, method, path, &body)?;
        match status {
            ..400 => Ok(serde_json::from_str(&body).map_err(io::Error::from)?),
            503 => Err(Error::OutcomeUnknown(location)), // No other 503 is final.
            _ => Err(Error::Refused { status, problem: serde_json::from_str(&body).ok() }),
        }
    }

    fn send(&self, name: &str, method: Method, path: &str, body: &str) -> Result<Answer> {
        let deadline = Instant::now() + self.give_up_after;
        let digest = sha256(&format!("{method} {path}\n{body}"));
        let key = uuid::Uuid::new_v4().to_string();
        let mut entry =
            Entry { name: name.into(), key: key.clone(), fingerprint: digest.clone(), answer: None };
        if let Some(folder) = &self.folder {
            entry = serde_json::from_reader(File::open(keep(folder, &entry)?)?).map_err(io::Error::from)?;
        }
        match entry.answer.take() {
            _ if entry.fingerprint != digest => return Err(Error::NameReused),
            Some(answer) => return Ok(answer),
            None => (),
        }
        let mut attempt = 0;
        loop {
            let timeout = self.attempt_timeout.min(deadline - Instant::now()).max(Duration::from_millis(1));
            let request = self.http.request(method.clone(), format!("{}{path}", self.url)).timeout(timeout);
            let request = request.bearer_auth(&self.api_key).header("Idempotency-Key", &entry.key);
            let sent = request.header(header::CONTENT_TYPE, "application/json").body(body.to_owned()).send();
            let judged = sent.and_then(|received| judge(received, attempt == 0 && entry.key == key));
            let (cause, retry_after) = match judged {
                Ok(Ok((answer, is_kept))) => {
                    entry.answer = is_kept.then(|| answer.clone());
                    self.folder.as_ref().map_or(Ok(PathBuf::new()), |folder| keep(folder, &entry))?;
                    return Ok(answer);
                }
                Ok(Err(open)) => open,
                Err(error) => (error.to_string(), Duration::ZERO),
            };
            // A random addition, so that clients that failed together don't come back together.
            let jitter = Duration::from_millis(fastrand::u64(0..250 << attempt.min(5)));
            let pause = retry_after.saturating_add(jitter);
            if deadline - Instant::now() <= pause {
                return Err(Error::Unanswered(cause));
            }
            std::thread::sleep(pause);
            attempt += 1;
        }
    }
}

/// The final answer, and whether to keep it; or else what happened, and the least pause before the next attempt.
type Outcome = Result<(Answer, bool), (String, Duration)>;
fn judge(received: blocking::Response, is_first: bool) -> reqwest::Result<Outcome> {
    let (status, headers) = (received.status().as_u16(), received.headers().clone());
    let text = |name| Some(headers.get(name)?.to_str().ok()?.to_owned());
    let body = received.text()?;
    let json = serde_json::from_str::<serde_json::Value>(&body).ok();
    // What isn't JSON comes from a proxy, which doesn't know what has become of the request.
    let is_unsure = matches!(status, 408 | 429 | 500..) || status < 400 && json.is_none();
    let is_final = !json.and_then(|problem| problem["retryable"].as_bool()).unwrap_or(is_unsure);
    // The service keeps no other refusals. They don't tell what has become of attempts before.
    let is_kept = is_final && (status < 400 || status == 503 || headers.contains_key("Idempotency-Expires"));
    if is_kept || is_final && is_first {
        return Ok(Ok(((status, text(header::LOCATION), body), is_kept)));
    }
    let after = text(header::RETRY_AFTER).unwrap_or_default();
    let seconds = after.parse().ok().map(Duration::from_secs);
    let date =
        httpdate::parse_http_date(&after).ok().and_then(|at| at.duration_since(SystemTime::now()).ok());
    Ok(Err((body, if is_final { Duration::MAX } else { seconds.or(date).unwrap_or_default() })))
}

fn sha256(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Keeps `entry`, once and for all processes, unless its name has one already and this has no answer. Returns when a crash
/// can't undo it. Another store needs no more than this: an atomic claim, and the answer in its place.
fn keep(folder: &Path, entry: &Entry) -> io::Result<PathBuf> {
    let path = folder.join(format!("{}.json", sha256(&entry.name)));
    let mut draft = tempfile::NamedTempFile::new_in(folder)?;
    draft.write_all(&serde_json::to_vec(entry)?)?;
    draft.as_file().sync_all()?;
    let kept = if entry.answer.is_some() { draft.persist(&path) } else { draft.persist_noclobber(&path) };
    match kept.map_err(|failed| failed.error) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => File::open(folder)?.sync_all()?, // Also for another process, which may have died before it did this.
    }
    Ok(path)
}
