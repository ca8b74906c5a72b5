//! Everything is bounded: whatever is gone, each request is answered in time and nothing piles up; and when it's back,
//! nobody has to help.

use std::process::Stdio;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::database::exposed;
use crate::support::*;

use super::amount;
use super::provider::{Dialect, Provider};
use super::proxy::{Proxy, Weather};
use super::scene::{Proxied, seed};

/// How much later than its deadline a request may be answered, seen by a client on a busy machine. Less than what is
/// gone stays away for: who waits for that is too late in any case.
fn slack() -> Duration {
    amount(Duration::from_secs(2), Duration::from_millis(500))
}

/// By when `/readyz` must have answered, whatever others may wait for.
const READINESS_DEADLINE: Duration = Duration::from_millis(1_500);
/// By when the service must be of use again.
fn recovery_max() -> Duration {
    amount(Duration::from_secs(8), Duration::from_secs(5))
}

/// How much the process may grow meanwhile, in KiB.
const GROWTH_MAX_KIB: u64 = 30 * 1024;

/// What is gone, for how long, and what bounds are set.
struct Trial {
    gone: Proxied,
    weather: Weather,
    deadline: Duration,
    clients: usize,
    gone_for: Duration,
    /// Successes before the memory is measured for the first time, and the last time.
    warm_up: usize,
    settings: &'static [(&'static str, &'static str)],
}

/// Timeouts that fit a deadline of two seconds.
const QUICK: &[(&str, &str)] = &[
    ("ONCEPAY_REQUEST_DEADLINE_MS", "2000"),
    ("ONCEPAY_POOL_TIMEOUT_MS", "500"),
    ("ONCEPAY_LEASE_MS", "1500"),
    ("ONCEPAY_PROCESSOR_TIMEOUT_MS", "900"),
    ("ONCEPAY_PROCESSOR_CONNECT_TIMEOUT_MS", "500"),
    ("ONCEPAY_PROCESSOR_REQUEST_TIMEOUT_MS", "500"),
    ("ONCEPAY_PROCESSOR_PROBE_INTERVAL_MS", "50"),
];

/// A request and its answer.
struct Seen {
    sent: Instant,
    answered: Instant,
    is_new_charge: bool,
    status: u16,
    says_when_to_retry: bool,
}

impl Seen {
    fn is_success(&self) -> bool {
        matches!(self.status, 200 | 201)
    }

    /// Whether it's as it should be while something may be gone.
    fn is_in_order(&self, deadline: Duration) -> bool {
        let took = self.answered - self.sent;
        took <= deadline + slack() && (self.is_success() || self.status == 503 && self.says_when_to_retry)
    }
}

/// What the threads of a trial share.
struct Work {
    client: Client,
    /// What the client asks for.
    charge: Value,
    is_over: AtomicBool,
    seen: Mutex<Vec<Seen>>,
    /// What `/readyz` has said.
    readiness: Mutex<Vec<Seen>>,
}

impl Work {
    fn look(&self, is_new_charge: bool, ask: impl FnOnce() -> Response) -> Seen {
        let sent = Instant::now();
        let answer = ask();
        Seen {
            sent,
            answered: Instant::now(),
            is_new_charge,
            status: answer.status,
            says_when_to_retry: answer.header("Retry-After").is_some(),
        }
    }

    /// Mostly new charges, and sometimes one that is known.
    fn keep_sending(&self, known: &str) {
        for turn in 0_u64.. {
            if self.is_over.load(Ordering::Relaxed) {
                return;
            }
            let seen = match turn % 8 {
                6 => self.look(false, || self.client.charge("known", &self.charge)),
                7 => self.look(false, || self.client.get(known)),
                _ => self.look(true, || self.client.charge(&fresh_key(), &self.charge)),
            };
            self.seen.lock().unwrap().push(seen);
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn keep_asking(&self) {
        while !self.is_over.load(Ordering::Relaxed) {
            let seen = self.look(false, || self.client.get("/readyz"));
            self.readiness.lock().unwrap().push(seen);
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn successes_since(&self, since: Instant) -> usize {
        self.seen.lock().unwrap().iter().filter(|seen| seen.sent >= since && seen.is_success()).count()
    }
}

/// Lets the threads end, also when the test fails.
struct Ending<'a>(&'a Work);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.is_over.store(true, Ordering::Relaxed);
    }
}

/// Resident memory of a process.
fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it runs");
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// How long after `since` the first of these was answered that was sent after it.
fn first_after<'a>(seen: impl IntoIterator<Item = &'a Seen>, since: Instant) -> Option<Duration> {
    let since_then = seen.into_iter().filter(|seen| seen.sent >= since);
    since_then.map(|seen| seen.answered - since).min()
}

impl Trial {
    fn of(gone: Proxied, weather: Weather) -> Self {
        let secs = Duration::from_secs;
        Self {
            gone,
            weather,
            deadline: amount(secs(2), secs(10)),
            clients: amount(48, 128),
            gone_for: amount(secs(6), secs(20)),
            warm_up: amount(200, 1_000),
            settings: amount(QUICK, &[]),
        }
    }

    /// Runs it and holds what came of it against the bounds.
    fn run(&self) {
        let database = TestDatabase::new();
        let dialect = Dialect::of_run();
        let acquirer = Provider::start(dialect, &database);
        let mut url = url::Url::parse(exposed(&database.app_url)).unwrap();
        let mut acquirer_url = None;
        let proxy = if self.gone == Proxied::Postgres {
            let proxy = Proxy::start(url.socket_addrs(|| Some(5432)).unwrap()[0], seed());
            url.set_host(Some("127.0.0.1")).unwrap();
            url.set_port(Some(proxy.port())).unwrap();
            proxy
        } else {
            let proxy = Proxy::start(acquirer.address(), seed());
            acquirer_url = Some(proxy.url());
            proxy
        };
        let at_acquirer = acquirer.environment(acquirer_url);
        let own = [("DATABASE_URL", url.as_str()), ("RUST_LOG", "error")];
        let mut environment: Vec<_> =
            at_acquirer.iter().map(|(name, value)| (*name, value.as_str())).collect();
        environment.extend(own.iter().chain(self.settings));
        let mut process =
            Process::try_start(acquirer.service()(), &database, &environment, Stdio::null()).unwrap();
        let patience = self.deadline + Duration::from_secs(10);
        let work = Work {
            client: Client::patient(process.client.base(), patience).as_merchant(&database.merchant()),
            charge: with_method(dialect.cards().approving),
            is_over: AtomicBool::new(false),
            seen: Mutex::default(),
            readiness: Mutex::default(),
        };
        eventually("the service", || work.client.get("/readyz").status == 200);
        let known = work.client.charge("known", &work.charge).expect(201).field("id");
        let known = format!("/v1/charges/{known}");
        let resident = || resident_kib(process.id());
        let began = Instant::now();
        let (gone_at, back_at, memory) = thread::scope(|scope| {
            let _ending = Ending(&work);
            for _ in 0..self.clients {
                scope.spawn(|| work.keep_sending(&known));
            }
            scope.spawn(|| work.keep_asking());
            eventually("the first answers", || work.successes_since(began) > self.warm_up);
            let before = resident();
            proxy.set(self.weather);
            let gone_at = Instant::now();
            let mut meanwhile = 0;
            while gone_at.elapsed() < self.gone_for {
                thread::sleep(Duration::from_millis(50));
                meanwhile = meanwhile.max(resident());
            }
            proxy.set(Weather::Fair);
            let back_at = Instant::now();
            eventually("the last answers", || {
                work.successes_since(back_at) > self.warm_up || back_at.elapsed() > 3 * recovery_max()
            });
            (gone_at, back_at, [before, meanwhile, resident()])
        });
        assert!(!process.has_ended());
        let (seen, readiness) = (work.seen.into_inner().unwrap(), work.readiness.into_inner().unwrap());
        self.judge(&seen, &readiness, (gone_at, back_at), memory);
    }

    fn judge(
        &self,
        seen: &[Seen],
        readiness: &[Seen],
        (gone_at, back_at): (Instant, Instant),
        kib: [u64; 3],
    ) {
        let during: Vec<_> = seen.iter().filter(|it| it.sent >= gone_at && it.sent < back_at).collect();
        let refused = during.iter().filter(|seen| seen.status == 503).count();
        let slowest = seen.iter().map(|seen| seen.answered - seen.sent).max().unwrap();
        let unready = first_after(readiness.iter().filter(|seen| seen.status == 503), gone_at);
        let ready = first_after(readiness.iter().filter(|seen| seen.status == 200), back_at);
        let charged =
            first_after(seen.iter().filter(|seen| seen.is_new_charge && seen.is_success()), back_at);
        println!(
            "{:?} {:?} for {:?}, deadline {:?}: {} answers, {refused} of them 503, slowest of all {slowest:.2?}; \
             unready after {unready:.2?}, ready again {ready:.2?} and charging {charged:.2?} after the return; \
             {} KiB before, {} KiB meanwhile, {} KiB afterwards",
            self.gone,
            self.weather,
            self.gone_for,
            self.deadline,
            during.len(),
            kib[0],
            kib[1],
            kib[2],
        );
        for (seen, deadline) in [(seen, self.deadline), (readiness, READINESS_DEADLINE)] {
            for seen in seen {
                let took = seen.answered - seen.sent;
                assert!(seen.is_in_order(deadline), "{} after {took:?}", seen.status);
            }
        }
        assert!(refused > 0, "nothing was gone");
        if self.gone == Proxied::Acquirer {
            // What is known needs no acquirer.
            assert!(during.iter().any(|seen| !seen.is_new_charge && seen.is_success()));
        }
        assert!(unready.is_some_and(|after| after < self.gone_for), "{unready:?}");
        assert!(ready.is_some_and(|after| after <= recovery_max()), "{ready:?}");
        assert!(charged.is_some_and(|after| after <= recovery_max()), "{charged:?}");
        assert!(kib[1].max(kib[2]) <= kib[0] + GROWTH_MAX_KIB, "{kib:?} KiB");
    }
}

#[test]
fn without_postgres_everything_is_bounded() {
    Trial::of(Proxied::Postgres, Weather::Refused).run();
}

#[test]
fn with_a_silent_postgres_everything_is_bounded() {
    Trial::of(Proxied::Postgres, Weather::BlackHole).run();
}

/// As when the server's disk hangs, and another server takes its place: nothing of the old connections ever ends.
#[test]
fn connections_to_postgres_that_stay_silent_are_given_up() {
    let trial = Trial::of(Proxied::Postgres, Weather::Oblivion);
    // Work is given ten seconds to end.
    let gone_for = trial.gone_for.max(Duration::from_secs(8));
    Trial { gone_for, ..trial }.run();
}

#[test]
fn without_the_acquirer_everything_is_bounded() {
    Trial::of(Proxied::Acquirer, Weather::Refused).run();
}

#[test]
fn with_a_silent_acquirer_everything_is_bounded() {
    Trial::of(Proxied::Acquirer, Weather::BlackHole).run();
}
