//! What clients have seen, and whether a service that executes each key once could have shown it to them.
//!
//! The rule is that of one register per key, written once. What is known of it is limited: an answer that got lost
//! may have been the one of the execution, so there may be no answer that isn't a replay; but never two.
//!
//! That a replay doesn't come before any execution could have begun needs no rule of its own: it would be an answer
//! before its request.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{self, BufRead, Write};
use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Nanoseconds since the recorder was made.
pub type Nanos = u64;

/// One request under a key, answered or not. An operation has as many as its client has sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    pub client: u32,
    pub key: String,
    /// Digest of method, path and body.
    pub request: String,
    pub sent_at: Nanos,
    /// `None`: the connection broke, or the client has waited long enough.
    pub answer: Option<Answer>,
}

/// What a client has got for an attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    pub at: Nanos,
    pub status: u16,
    /// Code of the problem; empty for an answer that is none.
    pub code: String,
    pub replayed: bool,
    /// Id of what the operation has made, if that's what it's for.
    pub made: Option<String>,
    pub body: String,
}

/// What an answer means to its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// It settles the request for good.
    Final,
    /// The request is being executed.
    InProgress,
    /// Nothing is known: send it again.
    Unknown,
}

impl Answer {
    pub fn meaning(&self) -> Meaning {
        match (self.status, self.code.as_str()) {
            (409, "idempotency_request_in_progress") => Meaning::InProgress,
            (408 | 429 | 500.., _) | (409, "duplicate_in_progress") => Meaning::Unknown,
            _ => Meaning::Final,
        }
    }

    pub fn is_final(&self) -> bool {
        self.meaning() == Meaning::Final
    }

    /// What all final answers to a key have in common.
    fn said(&self) -> (u16, &str, Option<&str>) {
        (self.status, &self.body, self.made.as_deref())
    }
}

/// One look at a resource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Read {
    pub client: u32,
    pub resource: String,
    pub sent_at: Nanos,
    pub answer: Option<Shown>,
}

/// What a look at a resource has shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    pub at: Nanos,
    pub status: u16,
    pub body: String,
}

/// A line of a history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "entry", rename_all = "snake_case")]
pub enum Entry {
    Attempt(Attempt),
    Read(Read),
}

/// Everything that the clients of a run have seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History(pub Vec<Entry>);

impl History {
    pub fn attempts(&self) -> impl Iterator<Item = &Attempt> {
        self.0.iter().filter_map(|entry| match entry {
            Entry::Attempt(attempt) => Some(attempt),
            Entry::Read(_) => None,
        })
    }

    pub fn reads(&self) -> impl Iterator<Item = &Read> {
        self.0.iter().filter_map(|entry| match entry {
            Entry::Read(read) => Some(read),
            Entry::Attempt(_) => None,
        })
    }

    /// Writes one line of JSON per entry.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        let mut file = io::BufWriter::new(std::fs::File::create(path)?);
        for entry in &self.0 {
            writeln!(file, "{}", serde_json::to_string(entry)?)?;
        }
        file.flush()
    }

    /// Reads what [`save`](Self::save) has written.
    pub fn load(path: &Path) -> io::Result<Self> {
        let lines = io::BufReader::new(std::fs::File::open(path)?).lines();
        lines.map(|line| Ok(serde_json::from_str(&line?)?)).collect::<io::Result<Vec<_>>>().map(Self)
    }
}

/// Takes down what several clients see at the same time, by one clock.
pub struct Recorder {
    epoch: Instant,
    entries: Mutex<Vec<Entry>>,
}

impl Recorder {
    pub fn new() -> Self {
        Self { epoch: Instant::now(), entries: Mutex::default() }
    }

    pub fn now(&self) -> Nanos {
        u64::try_from(self.epoch.elapsed().as_nanos()).expect("no run lasts for centuries")
    }

    pub fn note(&self, entry: Entry) {
        self.entries.lock().unwrap().push(entry);
    }

    /// Who has made the attempts so far that are like that, once for each.
    pub fn clients(&self, is_one: impl Fn(&Attempt) -> bool) -> Vec<u32> {
        let entries = self.entries.lock().unwrap();
        let attempts = entries.iter().filter_map(|entry| match entry {
            Entry::Attempt(attempt) if is_one(attempt) => Some(attempt.client),
            _ => None,
        });
        attempts.collect()
    }

    pub fn history(&self) -> History {
        History(self.entries.lock().unwrap().clone())
    }
}

/// What a right history amounts to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    pub keys: usize,
    pub attempts: usize,
    /// Attempts that never got an answer.
    pub unanswered: usize,
    /// Keys with a final answer.
    pub acknowledged: usize,
    /// Keys whose execution was seen, rather than its replay.
    pub executions_seen: usize,
    pub reads: usize,
}

/// How a history contradicts the rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Violation {
    /// An answer, to a key or a read, is older than its request.
    AnswerBeforeRequest { of: String },
    /// A client has used a key for two requests, so the history says nothing about the service.
    KeyReusedByClient { key: String },
    /// Two final answers to a key differ.
    AnswersDiffer { key: String },
    /// Two answers to a key claim to be of its execution.
    ExecutedTwice { key: String },
    /// When a key had its answer already, it was executed, or said to be running.
    AnswerForgotten { key: String },
    /// Two keys have made the same resource.
    ResourceShared { resource: String },
    /// A resource that somebody had seen was gone.
    ResourceVanished { resource: String },
    /// The amount of a resource is another one than before.
    AmountChanged { resource: String },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AnswerBeforeRequest { of } => write!(f, "{of} was answered before it was asked for"),
            Self::KeyReusedByClient { key } => write!(f, "the client has used {key} for two requests"),
            Self::AnswersDiffer { key } => write!(f, "{key} got two answers"),
            Self::ExecutedTwice { key } => write!(f, "{key} was executed twice"),
            Self::AnswerForgotten { key } => write!(f, "{key} had an answer, and then had none"),
            Self::ResourceShared { resource } => write!(f, "two keys have made {resource}"),
            Self::ResourceVanished { resource } => write!(f, "{resource} was there, and then wasn't"),
            Self::AmountChanged { resource } => write!(f, "the amount of {resource} has changed"),
        }
    }
}

/// Holds a history against the rule. The violations are sorted and each is named once.
pub fn check(history: &History) -> Result<Summary, Vec<Violation>> {
    let mut violations = BTreeSet::new();
    let mut by_key = BTreeMap::<&str, Vec<&Attempt>>::new();
    for attempt in history.attempts() {
        by_key.entry(&attempt.key).or_default().push(attempt);
    }
    let mut summary = Summary { keys: by_key.len(), reads: history.reads().count(), ..Summary::default() };
    for (key, attempts) in &by_key {
        check_key(key, attempts, &mut summary, &mut violations);
    }
    check_resources(history, &mut violations);
    if violations.is_empty() { Ok(summary) } else { Err(violations.into_iter().collect()) }
}

fn check_key(key: &str, attempts: &[&Attempt], summary: &mut Summary, violations: &mut BTreeSet<Violation>) {
    let key = || key.to_owned();
    let answers: Vec<_> = attempts.iter().filter_map(|attempt| attempt.answer.as_ref()).collect();
    let finals: Vec<_> = answers.iter().filter(|answer| answer.is_final()).collect();
    let executions = finals.iter().filter(|answer| !answer.replayed).count();
    summary.attempts += attempts.len();
    summary.unanswered += attempts.len() - answers.len();
    summary.acknowledged += usize::from(!finals.is_empty());
    summary.executions_seen += executions;

    if attempts.iter().any(|attempt| attempt.answer.as_ref().is_some_and(|it| it.at < attempt.sent_at)) {
        violations.insert(Violation::AnswerBeforeRequest { of: key() });
    }
    if attempts.iter().any(|attempt| attempt.request != attempts[0].request) {
        violations.insert(Violation::KeyReusedByClient { key: key() });
    }
    if finals.iter().any(|answer| answer.said() != finals[0].said()) {
        violations.insert(Violation::AnswersDiffer { key: key() });
    }
    if executions > 1 {
        violations.insert(Violation::ExecutedTwice { key: key() });
    }
    // Who has seen the answer knows that it's there, so whoever asks from then on gets it, or nothing.
    let Some(settled_at) = finals.iter().map(|answer| answer.at).min() else { return };
    let asked_later = attempts.iter().filter(|attempt| attempt.sent_at > settled_at);
    let is_forgotten = asked_later
        .filter_map(|attempt| attempt.answer.as_ref())
        .any(|answer| answer.meaning() == Meaning::InProgress || answer.is_final() && !answer.replayed);
    if is_forgotten {
        violations.insert(Violation::AnswerForgotten { key: key() });
    }
}

/// When a resource was first known to be there, and with which amount.
struct Known {
    since: Nanos,
    amount: Option<String>,
}

fn check_resources(history: &History, violations: &mut BTreeSet<Violation>) {
    let mut makers = BTreeMap::<&str, &str>::new();
    let mut known = BTreeMap::<&str, Known>::new();
    let mut see = |resource, at, body, violations: &mut BTreeSet<Violation>| {
        let amount = amount_of(body);
        let first = known.entry(resource).or_insert_with(|| Known { since: at, amount: amount.clone() });
        first.since = first.since.min(at);
        if first.amount != amount {
            violations.insert(Violation::AmountChanged { resource: resource.to_owned() });
        }
    };
    for attempt in history.attempts() {
        let Some(answer) = attempt.answer.as_ref().filter(|answer| answer.is_final()) else { continue };
        let Some(resource) = &answer.made else { continue };
        if *makers.entry(resource).or_insert(&attempt.key) != attempt.key {
            violations.insert(Violation::ResourceShared { resource: resource.clone() });
        }
        // A decline tells the id of the failed charge, and nothing else of it.
        if answer.status < 300 {
            see(resource, answer.at, &answer.body, violations);
        }
    }
    for read in history.reads() {
        let Some(answer) = &read.answer else { continue };
        if answer.at < read.sent_at {
            violations.insert(Violation::AnswerBeforeRequest { of: read.resource.clone() });
        }
        if answer.status == 200 {
            see(&read.resource, answer.at, &answer.body, violations);
        }
    }
    for read in history.reads() {
        let is_gone = read.answer.as_ref().is_some_and(|answer| answer.status == 404);
        if is_gone && known.get(read.resource.as_str()).is_some_and(|known| known.since < read.sent_at) {
            violations.insert(Violation::ResourceVanished { resource: read.resource.clone() });
        }
    }
}

fn amount_of(body: &str) -> Option<String> {
    let body: Value = serde_json::from_str(body).ok()?;
    body["amount"].as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An answer that has made a charge.
    fn made(at: Nanos, id: &str, replayed: bool) -> Answer {
        let body = format!(r#"{{"id":"{id}","amount":"12.50"}}"#);
        Answer { at, status: 201, code: String::new(), replayed, made: Some(id.to_owned()), body }
    }

    fn problem(at: Nanos, status: u16, code: &str) -> Answer {
        let body = format!(r#"{{"code":"{code}"}}"#);
        Answer { at, status, code: code.to_owned(), replayed: false, made: None, body }
    }

    fn attempt(key: &str, sent_at: Nanos, answer: Option<Answer>) -> Entry {
        Entry::Attempt(Attempt { client: 1, key: key.to_owned(), request: key.to_owned(), sent_at, answer })
    }

    fn read(resource: &str, sent_at: Nanos, status: u16, amount: &str) -> Entry {
        let body = format!(r#"{{"id":"{resource}","amount":"{amount}"}}"#);
        let answer = Some(Shown { at: sent_at + 1, status, body });
        Entry::Read(Read { client: 1, resource: resource.to_owned(), sent_at, answer })
    }

    fn violations(entries: Vec<Entry>) -> Vec<Violation> {
        check(&History(entries)).err().unwrap_or_default()
    }

    const BUSY: &str = "idempotency_request_in_progress";

    #[test]
    fn right_histories_pass() {
        let ok = |entries| assert_eq!(violations(entries), []);
        ok(vec![]);
        // As it should be.
        ok(vec![attempt("k", 1, Some(made(2, "a", false))), attempt("k", 3, Some(made(4, "a", true)))]);
        // The execution's answer was lost; it was finished by the worker; or there never was one.
        ok(vec![attempt("k", 1, None), attempt("k", 3, Some(made(4, "a", true)))]);
        ok(vec![attempt("k", 1, Some(made(9, "a", true)))]);
        ok(vec![attempt("k", 1, None), attempt("k", 2, Some(problem(3, 503, "database_unavailable")))]);
        // Sent before the answer was known: it may be told anything that was true meanwhile.
        ok(vec![
            attempt("k", 1, Some(made(5, "a", true))),
            attempt("k", 4, Some(problem(6, 409, BUSY))),
            attempt("k", 2, Some(made(9, "a", false))),
        ]);
        // Nothing is known after a failure, whenever it comes.
        ok(vec![
            attempt("k", 1, Some(made(2, "a", false))),
            attempt("k", 3, Some(problem(4, 500, "internal"))),
        ]);
        // Refused for good.
        let refused = |at, replayed| Answer { replayed, ..problem(at, 422, "insufficient_balance") };
        ok(vec![attempt("k", 1, Some(refused(2, false))), attempt("k", 3, Some(refused(4, true)))]);
        // A charge that isn't there yet, and then is.
        ok(vec![
            read("a", 1, 404, ""),
            attempt("k", 0, Some(made(5, "a", false))),
            read("a", 6, 200, "12.50"),
        ]);
    }

    #[test]
    fn an_answer_can_not_come_before_its_request() {
        let of = || "k".to_owned();
        let early = [attempt("k", 5, Some(made(4, "a", true)))];
        assert_eq!(violations(early.to_vec()), [Violation::AnswerBeforeRequest { of: of() }]);
        let shown = Some(Shown { at: 4, status: 404, body: String::new() });
        let early = [Entry::Read(Read { client: 1, resource: of(), sent_at: 5, answer: shown })];
        assert_eq!(violations(early.to_vec()), [Violation::AnswerBeforeRequest { of: of() }]);
    }

    #[test]
    fn a_history_of_a_client_that_reuses_keys_is_worth_nothing() {
        let mut other = attempt("k", 1, None);
        if let Entry::Attempt(attempt) = &mut other {
            attempt.request = "other".to_owned();
        }
        let expected = [Violation::KeyReusedByClient { key: "k".to_owned() }];
        assert_eq!(violations(vec![attempt("k", 1, None), other]), expected);
    }

    #[test]
    fn all_answers_to_a_key_are_the_same() {
        let expected = [Violation::AnswersDiffer { key: "k".to_owned() }];
        let first = attempt("k", 1, Some(made(2, "a", false)));
        let same = made(4, "a", true);
        for other in [
            made(4, "b", true),
            Answer { status: 200, ..same.clone() },
            Answer { body: same.body.replace("12.50", "12.500"), made: None, ..same.clone() },
            Answer { replayed: true, ..problem(4, 402, "card_declined") },
        ] {
            assert_eq!(violations(vec![first.clone(), attempt("k", 3, Some(other))]), expected);
        }
    }

    #[test]
    fn a_key_is_executed_once() {
        let both =
            vec![attempt("k", 1, Some(made(5, "a", false))), attempt("k", 2, Some(made(4, "a", false)))];
        assert_eq!(violations(both), [Violation::ExecutedTwice { key: "k".to_owned() }]);
    }

    #[test]
    fn what_is_answered_stays_answered() {
        let expected = [Violation::AnswerForgotten { key: "k".to_owned() }];
        let seen = attempt("k", 1, Some(made(2, "a", true)));
        let running = attempt("k", 3, Some(problem(4, 409, BUSY)));
        assert_eq!(violations(vec![seen.clone(), running]), expected);
        // A replay proves that the execution is over.
        let executed = attempt("k", 3, Some(made(4, "a", false)));
        assert_eq!(violations(vec![executed, seen]), expected);
    }

    #[test]
    fn two_keys_make_two_resources() {
        let shared =
            vec![attempt("k", 1, Some(made(2, "a", false))), attempt("l", 1, Some(made(2, "a", false)))];
        assert_eq!(violations(shared), [Violation::ResourceShared { resource: "a".to_owned() }]);
    }

    #[test]
    fn what_was_there_stays_there() {
        let expected = [Violation::ResourceVanished { resource: "a".to_owned() }];
        let acknowledged = attempt("k", 1, Some(made(2, "a", false)));
        assert_eq!(violations(vec![acknowledged, read("a", 3, 404, "12.50")]), expected);
        assert_eq!(violations(vec![read("a", 1, 200, "12.50"), read("a", 3, 404, "")]), expected);
    }

    #[test]
    fn an_amount_stays_what_it_was() {
        let expected = [Violation::AmountChanged { resource: "a".to_owned() }];
        let acknowledged = attempt("k", 1, Some(made(2, "a", false)));
        assert_eq!(violations(vec![acknowledged, read("a", 3, 200, "99.00")]), expected);
        assert_eq!(violations(vec![read("a", 1, 200, "1.00"), read("a", 3, 200, "2.00")]), expected);
    }

    #[test]
    fn a_history_is_read_as_it_was_written() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let history = History(vec![
            attempt("k", 1, None),
            attempt("k", 2, Some(made(3, "a", true))),
            read("a", 4, 200, "12.50"),
        ]);
        history.save(file.path()).unwrap();
        assert_eq!(History::load(file.path()).unwrap(), history);
    }

    /// The history of a failed run, once more: `ONCEPAY_FAULT_HISTORY=file`.
    #[test]
    fn the_history_that_is_asked_for_is_right() {
        let Some(path) = std::env::var_os("ONCEPAY_FAULT_HISTORY") else { return };
        let found = check(&History::load(Path::new(&path)).unwrap());
        println!("{found:#?}");
        assert!(found.is_ok());
    }

    /// What becomes of an attempt of a key that is executed right.
    #[derive(Clone, Copy, Debug)]
    enum Fate {
        Lost,
        Failed,
        /// The answer, if it's there by then; that it's running, if not.
        Told,
    }

    /// A right history of one key: attempts are sent one after another, one is chosen to execute it, if any, and
    /// each answer takes a while, so that attempts overlap.
    fn right_key(number: u64) -> impl Strategy<Value = Vec<Entry>> {
        let fate = prop_oneof![Just(Fate::Lost), Just(Fate::Failed), Just(Fate::Told)];
        let attempts = prop::collection::vec((1..50_u64, 1..80_u64, fate), 1..7);
        (attempts, any::<prop::sample::Index>()).prop_map(move |(attempts, executing)| {
            let (key, id) = (format!("k{number}"), format!("ch_{number}"));
            let executing = executing.index(attempts.len());
            let mut sent_at = 1_000 * number;
            let mut done_at = None;
            let mut entries = Vec::new();
            for (place, (pause, duration, fate)) in attempts.into_iter().enumerate() {
                sent_at += pause;
                let at = sent_at + duration;
                let is_executing = place == executing;
                if is_executing {
                    done_at = Some(at);
                }
                let is_done = done_at.is_some_and(|done_at| done_at <= at);
                entries.push(attempt(
                    &key,
                    sent_at,
                    match fate {
                        Fate::Lost => None,
                        Fate::Failed => Some(problem(at, 503, "database_unavailable")),
                        Fate::Told if is_done => Some(made(at, &id, !is_executing)),
                        Fate::Told => Some(problem(at, 409, BUSY)),
                    },
                ));
            }
            // The client gets there in the end, and looks.
            let later = sent_at + 1_000;
            if done_at.is_some() {
                entries.push(attempt(&key, later, Some(made(later + 1, &id, true))));
                entries.push(read(&id, later + 2, 200, "12.50"));
            }
            entries
        })
    }

    fn right_history() -> impl Strategy<Value = History> {
        (1..5_u64)
            .prop_flat_map(|keys| (0..keys).map(|number| right_key(10 * number)).collect::<Vec<_>>())
            .prop_map(|keys| History(keys.concat()))
    }

    /// The attempts with a final answer: every generated key has at least one.
    fn answered(history: &mut History) -> Vec<&mut Attempt> {
        let attempts = history.0.iter_mut().filter_map(|entry| match entry {
            Entry::Attempt(attempt) => Some(attempt),
            Entry::Read(_) => None,
        });
        attempts.filter(|attempt| attempt.answer.as_ref().is_some_and(Answer::is_final)).collect()
    }

    /// Spoils a history in one way; what the checker must find.
    fn spoil(history: &mut History, way: u8, which: prop::sample::Index) -> Violation {
        let attempts = answered(history);
        let place = which.index(attempts.len());
        let attempt = attempts.into_iter().nth(place).unwrap();
        let (key, resource) = (attempt.key.clone(), attempt.key.replace('k', "ch_"));
        let sent_at = attempt.sent_at;
        let answer = attempt.answer.as_mut().unwrap();
        let later = answer.at.max(sent_at) + 10_000;
        match way {
            0 => {
                answer.at = sent_at.checked_sub(1).unwrap();
                Violation::AnswerBeforeRequest { of: key }
            }
            1 => {
                let mut again = attempt.clone();
                again.request = "other".to_owned();
                history.0.push(Entry::Attempt(again));
                Violation::KeyReusedByClient { key }
            }
            2 => {
                let mut again = attempt.clone();
                let answer = again.answer.as_mut().unwrap();
                (answer.body, answer.replayed) = (answer.body.replace("12.50", "12.51"), true);
                history.0.push(Entry::Attempt(again));
                Violation::AnswersDiffer { key }
            }
            3 => {
                let mut again = attempt.clone();
                again.answer.as_mut().unwrap().replayed = false;
                history.0.extend([Entry::Attempt(again.clone()), Entry::Attempt(again)]);
                Violation::ExecutedTwice { key }
            }
            4 => {
                history.0.push(self::attempt(&key, later, Some(problem(later + 1, 409, BUSY))));
                Violation::AnswerForgotten { key }
            }
            5 => {
                history.0.push(self::attempt("thief", later, Some(made(later + 1, &resource, false))));
                Violation::ResourceShared { resource }
            }
            6 => {
                history.0.push(read(&resource, later, 404, ""));
                Violation::ResourceVanished { resource }
            }
            _ => {
                history.0.push(read(&resource, later, 200, "0.01"));
                Violation::AmountChanged { resource }
            }
        }
    }

    proptest! {
        #[test]
        fn right_histories_are_taken_and_spoiled_ones_are_not(
            history in right_history(),
            way in 0..8_u8,
            which in any::<prop::sample::Index>(),
        ) {
            prop_assert_eq!(check(&history).err(), None);
            let mut spoiled = history;
            let violation = spoil(&mut spoiled, way, which);
            let found = check(&spoiled).err().unwrap_or_default();
            prop_assert!(found.contains(&violation), "{:?} is missing in {:?}", violation, found);
        }

        /// Losing answers makes no right history wrong: whoever knows less has less to complain of.
        #[test]
        fn answers_may_get_lost(history in right_history(), lost in prop::collection::vec(any::<bool>(), 64)) {
            let mut history = history;
            for (entry, lost) in history.0.iter_mut().zip(lost.into_iter().cycle()) {
                match entry {
                    Entry::Attempt(attempt) if lost => attempt.answer = None,
                    Entry::Read(read) if lost => read.answer = None,
                    _ => {}
                }
            }
            prop_assert_eq!(check(&history).err(), None);
        }
    }
}
