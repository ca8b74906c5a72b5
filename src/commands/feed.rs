//! A merchant's events as they happen, for the commands that follow them.
//!
//! Promised: each event is handed over once and in its order, also if the service goes away and comes back meanwhile. A command
//! that goes on from the cursor that another one printed at its end misses nothing and repeats nothing.

use std::io::Write;
use std::time::Duration;

use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};
use url::form_urlencoded;

use super::client::{self, ApiClient, Unanswered};
use super::exit::Stop;
use super::shared::ListForm;
use crate::base::time;

/// Interval of the polls, and the first pause after a failed one.
const INTERVAL: Duration = Duration::from_millis(500);
/// Maximum pause after a failed poll. A deploy takes some seconds.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// A page of events.
struct Page {
    events: Vec<Value>,
    /// The cursor after them.
    next: String,
    has_more: bool,
}

/// The events of a merchant, oldest first.
pub struct Feed {
    /// After what was handed over.
    cursor: String,
    /// Events that were read when the feed was opened.
    first: Option<Page>,
}

impl Feed {
    /// Opens a feed that begins after `start`: a cursor, the id of an event, `now`, or empty for the oldest event.
    pub async fn open(api: &ApiClient, start: &str) -> Result<Self, Unanswered> {
        let first = read(api, start).await?;
        // From here on, `now` would be later.
        let is_empty = first.events.is_empty();
        let cursor = if is_empty { first.next.clone() } else { start.to_owned() };
        Ok(Self { cursor, first: Some(first) })
    }

    /// Hands over page after page, until `take` returns false: then that page counts as not handed over. While the service
    /// doesn't answer, or can't, asks again and again, and says so on standard error. Other errors end it.
    pub async fn follow(
        &mut self,
        api: &ApiClient,
        mut take: impl AsyncFnMut(&[Value]) -> bool,
    ) -> Result<(), Unanswered> {
        let (mut complaint, mut failures) = (String::new(), 0);
        loop {
            let read = match self.first.take() {
                Some(page) => Ok(page),
                None => read(api, &self.cursor).await,
            };
            let pause = match read {
                Ok(page) => {
                    if !std::mem::take(&mut complaint).is_empty() {
                        eprintln!("The service answers again.");
                    }
                    failures = 0;
                    if !take(&page.events).await {
                        return Ok(());
                    }
                    self.cursor = page.next;
                    if page.has_more { Duration::ZERO } else { INTERVAL }
                }
                Err(error) if error.passes() => {
                    let sentence = error.to_string();
                    if sentence != complaint {
                        eprintln!("{sentence} Trying again.");
                        complaint = sentence;
                    }
                    failures += 1;
                    time::backoff(INTERVAL, failures - 1, PAUSE_MAX)
                }
                Err(error) => return Err(error),
            };
            tokio::time::sleep(pause).await;
        }
    }
}

async fn read(api: &ApiClient, after: &str) -> Result<Page, Unanswered> {
    // The start may be what somebody typed.
    let after: String = form_urlencoded::byte_serialize(after.as_bytes()).collect();
    let mut page = api.get(&format!("/v1/events?limit=100&after={after}")).await?;
    let events = match page["data"].take() {
        Value::Array(events) => events,
        _ => Vec::new(),
    };
    let next = page["next"].as_str().ok_or_else(|| api.is_no_service())?.to_owned();
    Ok(Page { events, next, has_more: page["has_more"] == true })
}

/// Runs `work` until it ends, or until SIGINT or SIGTERM: then it returns `None`. The error is a sentence.
pub async fn until_signal<T>(work: impl Future<Output = T>) -> Result<Option<T>, String> {
    let signal = |kind| signal(kind).map_err(|error| format!("Can't listen for signals: {error}."));
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        ended = work => Ok(Some(ended)),
        _ = interrupt.recv() => Ok(None),
        _ = terminate.recv() => Ok(None),
    }
}

/// Options of the commands that print what happens.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Where to begin: after a cursor that an earlier run printed, or the id of an event; `now`; or empty, to begin with the oldest
    /// event that is kept
    #[arg(long, value_name = "CURSOR", default_value = "now")]
    after: String,

    #[command(flatten)]
    form: ListForm,

    #[command(flatten)]
    service: client::Options,
}

/// Prints the events of which `show` makes a line and a JSON object, until SIGINT or SIGTERM, or until nobody reads any more. At
/// last, prints the cursor on standard error.
pub fn tail(
    options: &Options,
    out: &mut impl Write,
    show: impl Fn(&Value) -> Option<(String, Value)>,
) -> Result<(), Stop> {
    let api = ApiClient::new(&options.service)?;
    actix_web::rt::System::new().block_on(async {
        let mut feed = Feed::open(&api, &options.after).await?;
        eprintln!("Following the events after {:?}. Ctrl-C ends it.", feed.cursor);
        let write = async |events: &[Value]| {
            events.iter().filter_map(&show).all(|(line, object)| {
                let written =
                    if options.form.json { writeln!(out, "{object}") } else { writeln!(out, "{line}") };
                written.is_ok()
            })
        };
        let ended = until_signal(feed.follow(&api, write)).await?;
        eprintln!("To go on from here: --after {:?}", feed.cursor);
        Ok(ended.unwrap_or(Ok(()))?)
    })
}

/// A text of a JSON object, or `–`.
pub fn text_of<'a>(object: &'a Value, name: &str) -> &'a str {
    object[name].as_str().unwrap_or("–")
}
