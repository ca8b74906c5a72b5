//! Where a fault is played: a database, instances of the service, clients; and the reckoning afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use diesel::RunQueryDsl;
use oncepay::dev::postgres;
use tempfile::TempDir;

use crate::support::database::{exposed, fast_folder};
use crate::support::*;

use super::clients::{Customer, Habits, Load};
use super::history::{Attempt, History, Nanos, Recorder, check};
use super::provider::{Dialect, Provider};
use super::proxy::Proxy;
use super::table::Row;

/// What is needed of a fault's surroundings.
#[derive(Clone, Debug)]
pub struct Setup {
    /// What is done, as the table names it.
    pub fault: &'static str,
    pub instances: usize,
    pub clients: u32,
    pub habits: Habits,
    /// Whether Postgres is the scene's own, safe from crashes, so that it can be restarted.
    pub own_server: bool,
    /// Whether the acquirer has its database on another server than the service.
    pub acquirer_elsewhere: bool,
    /// Which processor there is.
    pub dialect: Dialect,
    /// Where there is a proxy.
    pub proxied: Proxied,
    /// By how many seconds the clock of each instance is off; those beyond the end are right.
    pub clocks_off_s: &'static [i64],
    /// Further settings of the service.
    pub settings: Vec<(&'static str, String)>,
}

impl Setup {
    pub fn of(fault: &'static str) -> Self {
        let dialect = Dialect::of_run();
        Self {
            fault,
            instances: 1,
            clients: 4,
            habits: Habits {
                request_timeout: Duration::from_millis(2_500),
                patience: Duration::from_secs(60),
                pause_max: Duration::from_millis(40),
                hedged_percent: 10,
                forgotten_percent: 5,
                cards: dialect.cards(),
            },
            own_server: false,
            acquirer_elsewhere: false,
            dialect,
            proxied: Proxied::Nothing,
            clocks_off_s: &[],
            settings: Vec::new(),
        }
    }

    /// The same with a certain processor.
    pub fn speaking(self, dialect: Dialect) -> Self {
        Self { dialect, habits: Habits { cards: dialect.cards(), ..self.habits }, ..self }
    }
}

/// What is reached through a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proxied {
    Nothing,
    /// The database, by all instances.
    Postgres,
    /// The acquirer, by all instances.
    Acquirer,
    /// The first instance, by its clients.
    Service,
}

/// How Postgres is told to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Open transactions are rolled back.
    Fast,
    /// At once; the next start recovers from the log.
    Immediate,
}

/// A Postgres of the scene's own, on a port that it keeps.
pub struct OwnServer {
    pub folder: PathBuf,
    pub port: u16,
    running: Mutex<Option<postgres::Server>>,
}

impl OwnServer {
    pub fn start(folder: PathBuf, port: u16) -> Self {
        let running = Mutex::new(Some(Self::launch(&folder, port)));
        Self { folder, port, running }
    }

    fn launch(folder: &Path, port: u16) -> postgres::Server {
        let settings = postgres::Settings {
            cluster_dir: folder,
            durable: true,
            max_connections: 100,
            port: Some(port),
            supply: database::supply(),
        };
        postgres::Server::start(&settings).unwrap()
    }

    /// A database of the scene's on it.
    pub fn database(&self) -> TestDatabase {
        TestDatabase::on(self.running.lock().unwrap().as_ref().expect("it runs"))
    }

    /// A superuser's.
    pub fn url(&self, database: &str) -> String {
        self.running.lock().unwrap().as_ref().expect("it runs").superuser_url(database)
    }

    pub fn restart(&self, ending: Ending) {
        if ending == Ending::Immediate {
            self.quit();
        }
        self.launch_again();
    }

    /// Waits until it has ended, for good.
    pub fn bury(&self) {
        self.running.lock().unwrap().take().unwrap().stop().unwrap();
    }

    /// Starts it again, after its end or after it has stopped.
    pub fn launch_again(&self) {
        let mut running = self.running.lock().unwrap();
        running.take().unwrap().stop().unwrap();
        *running = Some(Self::launch(&self.folder, self.port));
    }

    /// Has it end at once.
    pub fn quit(&self) {
        let pid_file = std::fs::read_to_string(self.folder.join("postmaster.pid")).unwrap();
        let pid = pid_file.lines().next().unwrap().parse().unwrap();
        // SAFETY: it's the server that we run.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGQUIT) }, 0);
    }
}

/// An instance of the service that is started again, on the same port, whenever it has died.
pub struct Instance {
    port: u16,
    process: Arc<Mutex<Option<Process>>>,
    /// What the last attempt to start it said, if that failed.
    refusal: Arc<Mutex<String>>,
    is_over: Arc<AtomicBool>,
    supervisor: Option<JoinHandle<()>>,
}

impl Instance {
    fn start(
        command: fn() -> Command,
        database: &Arc<TestDatabase>,
        settings: Vec<(String, String)>,
        log: PathBuf,
    ) -> Self {
        let port = free_port();
        let (process, is_over) = (Arc::<Mutex<Option<Process>>>::default(), Arc::<AtomicBool>::default());
        let refusal = Arc::<Mutex<String>>::default();
        let supervisor = {
            let (database, process, is_over) =
                (Arc::clone(database), Arc::clone(&process), Arc::clone(&is_over));
            let refusal = Arc::clone(&refusal);
            thread::spawn(move || {
                let listen = format!("127.0.0.1:{port}");
                let mut environment: Vec<_> =
                    settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
                environment.push(("ONCEPAY_LISTEN", &listen));
                while !is_over.load(Ordering::Relaxed) {
                    let mut process = process.lock().unwrap();
                    if process.as_mut().is_none_or(Process::has_ended) {
                        let file: Stdio =
                            File::options().create(true).append(true).open(&log).unwrap().into();
                        // If not now, then with the next try.
                        *process = Process::try_start(command(), &database, &environment, file).ok();
                        if process.is_none() {
                            let said = std::fs::read_to_string(&log).unwrap_or_default();
                            *refusal.lock().unwrap() = said.lines().last().unwrap_or_default().to_owned();
                        }
                    }
                    drop(process);
                    thread::sleep(Duration::from_millis(10));
                }
            })
        };
        Self { port, process, refusal, is_over, supervisor: Some(supervisor) }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Sends a signal to the process that runs at the moment.
    pub fn signal(&self, signal: libc::c_int) {
        let is_sent = || {
            let mut process = self.process.lock().unwrap();
            let Some(process) = process.as_mut() else { return false };
            let is_there = !process.has_ended();
            if is_there {
                process.signal(signal);
            }
            is_there
        };
        eventually_or(is_sent, || {
            let refusal = self.refusal.lock().unwrap();
            format!("no process to send a signal to; the last one said: {refusal}")
        });
    }

    pub fn kill(&self) {
        self.signal(libc::SIGKILL);
    }

    pub fn is_ready(&self) -> bool {
        let client = Client::patient(self.url(), Duration::from_secs(1));
        client.request("GET", "/readyz").try_send().is_ok_and(|response| response.status == 200)
    }

    /// Waits until it can serve.
    pub fn wait_until_ready(&self) {
        eventually("the instance", || self.is_ready());
    }

    /// Ends it as an operator would, and waits until it serves again.
    pub fn restart(&self) {
        let id = || self.process.lock().unwrap().as_ref().map(Process::id);
        let before = id();
        self.signal(libc::SIGTERM);
        eventually("the restart", || id().is_some_and(|id| before != Some(id)));
        self.wait_until_ready();
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(supervisor) = self.supervisor.take() {
            let _ = supervisor.join();
        }
    }
}

/// A folder of a scene's, open to the user that runs Postgres.
pub fn folder() -> TempDir {
    let mut folder = tempfile::Builder::new();
    folder.prefix("oncepay-faults-").permissions(Permissions::from_mode(0o755));
    folder.tempdir_in(fast_folder()).unwrap()
}

/// All of it, at work.
pub struct Scene {
    setup: Setup,
    seed: u64,
    // In this order: each needs the ones after it.
    load: Option<Load>,
    pub instances: Vec<Instance>,
    pub proxy: Option<Proxy>,
    acquirer: Mutex<Provider>,
    _elsewhere: Option<TestDatabase>,
    pub database: Arc<TestDatabase>,
    pub server: Option<OwnServer>,
    pub recorder: Arc<Recorder>,
    /// When each fault ended.
    fault_ends: Mutex<Vec<Nanos>>,
    folder: TempDir,
}

/// The seed of this run: `ONCEPAY_FAULT_SEED`, or another one each time.
pub fn seed() -> u64 {
    match std::env::var("ONCEPAY_FAULT_SEED") {
        Ok(seed) => seed.parse().expect("ONCEPAY_FAULT_SEED must be a number"),
        Err(_) => rand::random_range(0..1_000_000),
    }
}

/// Settings of every instance: what died is taken over soon, and as often as it takes.
const SETTINGS: [(&str, &str); 6] = [
    ("ONCEPAY_LEASE_MS", "1500"),
    ("ONCEPAY_PROCESSOR_TIMEOUT_MS", "900"),
    ("ONCEPAY_RECOVERY_INTERVAL_MS", "100"),
    ("ONCEPAY_RECOVERY_DELAY_MS", "200"),
    ("ONCEPAY_RECOVERY_ATTEMPTS_MAX", "1000"),
    ("RUST_LOG", "warn"),
];

impl Scene {
    /// Sets everything up and lets the clients begin.
    pub fn start(setup: Setup) -> Self {
        let folder = folder();
        let server = setup.own_server.then(|| OwnServer::start(folder.path().join("postgres"), free_port()));
        let database = server.as_ref().map_or_else(TestDatabase::new, OwnServer::database);
        Self::start_on(setup, folder, server, database)
    }

    /// The same on a certain database.
    pub fn start_on(
        setup: Setup,
        folder: TempDir,
        server: Option<OwnServer>,
        database: TestDatabase,
    ) -> Self {
        let seed = seed();
        println!("{}: ONCEPAY_FAULT_SEED={seed}", setup.fault);
        let database = Arc::new(database);
        let mut database_url = exposed(&database.app_url).to_owned();
        let mut proxy = (setup.proxied == Proxied::Postgres).then(|| {
            let mut url = url::Url::parse(&database_url).unwrap();
            let target = url.socket_addrs(|| Some(5432)).unwrap()[0];
            let proxy = Proxy::start(target, seed);
            url.set_host(Some("127.0.0.1")).unwrap();
            url.set_port(Some(proxy.port())).unwrap();
            database_url = url.into();
            proxy
        });
        let elsewhere = setup.acquirer_elsewhere.then(TestDatabase::new);
        let acquirer = Provider::start(setup.dialect, elsewhere.as_ref().unwrap_or(&database));
        let before = (setup.proxied == Proxied::Acquirer).then(|| Proxy::start(acquirer.address(), seed));
        let at_acquirer = acquirer.environment(before.as_ref().map(Proxy::url));
        proxy = proxy.or(before);
        let instances = (0..setup.instances).map(|number| {
            let given = SETTINGS.iter().map(|(name, value)| (*name, (*value).to_owned()));
            let own = [
                ("DATABASE_URL", database_url.clone()),
                ("ONCEPAY_CLOCK_OFFSET_S", setup.clocks_off_s.get(number).unwrap_or(&0).to_string()),
            ];
            let settings = given.chain(own).chain(at_acquirer.clone()).chain(setup.settings.clone());
            let settings = settings.map(|(name, value)| (name.to_owned(), value)).collect();
            let log = folder.path().join(format!("api-{number}.log"));
            Instance::start(acquirer.service(), &database, settings, log)
        });
        let instances: Vec<_> = instances.collect();
        for instance in &instances {
            instance.wait_until_ready();
        }
        let recorder = Arc::new(Recorder::new());
        let mut addresses: Vec<_> = instances.iter().map(Instance::url).collect();
        if setup.proxied == Proxied::Service {
            let before = Proxy::start(([127, 0, 0, 1], instances[0].port).into(), seed);
            addresses[0] = before.url();
            proxy = Some(before);
        }
        let customers = (0..setup.clients).map(|number| {
            let merchant = database.merchant();
            Customer::new(number, &merchant, &addresses, setup.habits, seed, Arc::clone(&recorder))
        });
        let load = Load::start(customers.collect());
        let scene = Self {
            setup,
            seed,
            load: Some(load),
            instances,
            proxy,
            acquirer: Mutex::new(acquirer),
            _elsewhere: elsewhere,
            database,
            server,
            recorder,
            fault_ends: Mutex::default(),
            folder,
        };
        scene.wait_for_answers(20);
        scene
    }

    /// Lets a fault happen: its end is when `fault` returns.
    pub fn strike(&self, fault: impl FnOnce(&Self)) {
        fault(self);
        self.fault_ends.lock().unwrap().push(self.recorder.now());
    }

    /// Waits until some requests that were sent since the last fault have got final answers.
    pub fn wait_for_recovery(&self) {
        self.wait_for_answers(5);
    }

    /// Waits until each client has got a final answer to a request that it has sent since the last fault.
    pub fn wait_for_everybody(&self) {
        let everybody = self.setup.clients as usize;
        self.wait_for("everybody's recovery", |answered| {
            answered.iter().collect::<BTreeSet<_>>().len() == everybody
        });
    }

    /// Waits for this many final answers to requests that were sent since the last fault.
    pub fn wait_for_answers(&self, wanted: usize) {
        self.wait_for("the recovery", |answered| answered.len() >= wanted);
    }

    /// Waits until those are enough who have got a final answer since the last fault, once for each answer.
    fn wait_for(&self, what: &str, is_enough: impl Fn(&[u32]) -> bool) {
        let since = self.fault_ends.lock().unwrap().last().copied().unwrap_or(0);
        let deadline = Instant::now() + Duration::from_secs(90);
        while !is_enough(&self.recorder.clients(|attempt| answered_since(attempt, since).is_some())) {
            if Instant::now() > deadline {
                panic!("{}: {what} doesn't come about{}", self.setup.fault, self.keep_evidence());
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Restarts Postgres.
    pub fn restart_postgres(&self, ending: Ending) {
        self.server.as_ref().expect("the scene has a server of its own").restart(ending);
    }

    /// Changes the weather of the proxy.
    pub fn proxy(&self) -> &Proxy {
        self.proxy.as_ref().expect("the scene has a proxy")
    }

    /// The acquirer, to make it fail.
    pub fn acquirer(&self) -> MutexGuard<'_, Provider> {
        self.acquirer.lock().unwrap()
    }

    /// Ends the load and holds everything against everything. Panics where something doesn't agree.
    pub fn finish(self) -> Row {
        let fault = self.setup.fault;
        let (row, problems, scene) = self.reckon();
        if !problems.is_empty() {
            panic!("{fault}:\n{}\n{}", problems.join("\n"), scene.keep_evidence());
        }
        row
    }

    /// Ends the load; returns what came of it and everything that doesn't agree.
    pub fn reckon(mut self) -> (Row, Vec<String>, Self) {
        let mut problems = Vec::new();
        let mut customers = self.load.take().expect("it has begun").stop();
        let unresolved: Vec<_> = customers
            .iter()
            .flat_map(|customer| &customer.done)
            .filter(|done| done.answer.is_none() && !done.is_forgotten)
            .map(|done| done.order.key.clone())
            .collect();
        if !unresolved.is_empty() {
            problems.push(format!("clients gave up on {unresolved:?}"));
        }
        for instance in &self.instances {
            instance.wait_until_ready();
        }
        // By the service alone: no client asks for any of it. What failed many times during the faults would wait longer than
        // this does.
        execute(
            &mut self.database.as_owner(),
            "UPDATE idempotency_keys SET recover_at = lease_expires_at \
             WHERE state = 'in_progress' AND recover_at > lease_expires_at",
        );
        let deadline = Instant::now() + Duration::from_secs(30);
        let in_progress =
            || self.database.count("SELECT count(*) FROM idempotency_keys WHERE state = 'in_progress'");
        while in_progress() > 0 {
            if Instant::now() > deadline {
                let rows = "SELECT coalesce(string_agg((to_jsonb(k) - 'request_body')::text, E'\n'), '') \
                            FROM idempotency_keys AS k WHERE state = 'in_progress'";
                let rows = self.database.text(rows);
                problems.push(format!("{} requests stay in progress:\n{rows}", in_progress()));
                break;
            }
            thread::sleep(Duration::from_millis(20));
        }
        let history_of_load = self.recorder.history();

        let lost = thread::scope(|scope| {
            let asking: Vec<_> =
                customers.iter_mut().map(|customer| scope.spawn(|| customer.ask_again())).collect();
            asking.into_iter().flat_map(|asking| asking.join().unwrap()).collect::<Vec<_>>()
        });
        problems.extend(lost.iter().map(|key| format!("the answer to {key} is lost")));
        problems.extend(customers.iter().flat_map(|customer| customer.surprises.clone()));
        let (gone, extra) = self.compare_resources(&customers, &mut problems);
        let extra_calls = self.compare_processor(&customers, &mut problems);
        problems.extend(self.acquirer().disagreements(&self.database));
        match oncepay::audit::run(&mut self.database.as_superuser(), &oncepay::server::resource_kinds()) {
            Ok(report) if report.clean => {}
            Ok(report) => problems.push(format!("the books are not in order:\n{report}")),
            Err(error) => problems.push(format!("the audit couldn't be run: {error}")),
        }
        if let Err(violations) = check(&self.recorder.history()) {
            problems.extend(violations.iter().map(ToString::to_string));
        }
        let row = self.row(&history_of_load, lost.len() + gone, extra + extra_calls);
        println!("{row}");
        (row, problems, self)
    }

    /// For a test that damages the books on purpose: ends the service, and doesn't look at them again.
    pub fn leave_the_books_as_they_are(&mut self) {
        self.instances.clear();
        Arc::get_mut(&mut self.database).expect("nobody else is left").skip_audit();
    }

    /// What there is against what clients were told of. Returns how many are missing and how many too many.
    fn compare_resources(&self, customers: &[Customer], problems: &mut Vec<String>) -> (usize, usize) {
        #[derive(diesel::QueryableByName)]
        struct Resource {
            #[diesel(sql_type = diesel::sql_types::Text)]
            name: String,
        }
        let there = diesel::sql_query(
            "SELECT 'ch_' || replace(id::text, '-', '') AS name FROM charges \
             UNION ALL SELECT 're_' || replace(id::text, '-', '') FROM refunds \
             UNION ALL SELECT 'po_' || replace(id::text, '-', '') FROM payouts",
        );
        let there = there.load::<Resource>(&mut self.database.as_superuser()).unwrap();
        let there: BTreeSet<_> = there.into_iter().map(|resource| resource.name).collect();
        let answers = customers.iter().flat_map(|customer| &customer.done);
        let told: BTreeSet<_> = answers.filter_map(|done| done.answer.as_ref()?.made.clone()).collect();
        problems.extend(told.difference(&there).map(|name| format!("{name} was acknowledged and is gone")));
        problems.extend(there.difference(&told).map(|name| format!("{name} belongs to no order")));
        (told.difference(&there).count(), there.difference(&told).count())
    }

    /// What the processor did against what was ordered. Returns how often it did too much.
    fn compare_processor(&self, customers: &[Customer], problems: &mut Vec<String>) -> usize {
        let mut ordered = BTreeMap::<String, usize>::new();
        for done in customers.iter().flat_map(|customer| &customer.done) {
            for step in done.order.kind.processor_steps() {
                *ordered.entry((*step).to_owned()).or_default() += 1;
            }
        }
        let mut did = BTreeMap::<String, usize>::new();
        let mut too_much = 0;
        let effects = self.acquirer().effects();
        for (key, count) in effects {
            let step = key.rsplit(':').next().unwrap_or_default().to_owned();
            *did.entry(step).or_default() += 1;
            if count > 1 {
                too_much += count as usize - 1;
                problems.push(format!("the processor has done {key} {count} times"));
            }
        }
        if did != ordered {
            problems.push(format!("ordered were {ordered:?}, and the processor did {did:?}"));
        }
        let extra = |step: &String| did.get(step).copied().unwrap_or(0).saturating_sub(ordered[step]);
        too_much + ordered.keys().map(extra).sum::<usize>()
    }

    fn row(&self, history: &History, lost: usize, duplicated: usize) -> Row {
        let mut acknowledged = BTreeMap::<&str, (Nanos, Nanos)>::new();
        for attempt in history.attempts() {
            let life = acknowledged.entry(&attempt.key).or_insert((attempt.sent_at, Nanos::MAX));
            life.0 = life.0.min(attempt.sent_at);
            if let Some(answer) = attempt.answer.as_ref().filter(|answer| answer.is_final()) {
                life.1 = life.1.min(answer.at);
            }
        }
        let requests = acknowledged.len();
        acknowledged.retain(|_, (_, answered_at)| *answered_at < Nanos::MAX);
        let attempts = history.attempts().count();
        let first_after = |&end: &Nanos| {
            let answers = history.attempts().filter_map(|attempt| answered_since(attempt, end));
            answers.min().map(|at| at - end)
        };
        let fault_ends = self.fault_ends.lock().unwrap();
        Row {
            fault: self.setup.fault.to_owned(),
            injections: fault_ends.len(),
            requests,
            retries: attempts - requests,
            acknowledged: acknowledged.len(),
            taken_over: self.database.count("SELECT count(*) FROM idempotency_keys WHERE attempts > 1"),
            lost,
            duplicated,
            worst_recovery: Duration::from_nanos(
                fault_ends.iter().filter_map(first_after).max().unwrap_or_default(),
            ),
            slowest: Duration::from_nanos(
                acknowledged.values().map(|(sent, answered)| answered - sent).max().unwrap_or_default(),
            ),
            postgres: self.database.text("SELECT split_part(current_setting('server_version'), ' ', 1)"),
        }
    }

    /// Writes down what is needed to look into a failure; returns where.
    fn keep_evidence(&self) -> String {
        let name = format!("oncepay-faults-failed-{}-{}", self.seed, std::process::id());
        let kept = std::env::temp_dir().join(format!("{name}-{}", fresh_key()));
        let keep = || {
            std::fs::create_dir(&kept)?;
            self.recorder.history().save(&kept.join("history.jsonl"))?;
            for entry in std::fs::read_dir(self.folder.path())? {
                let entry = entry?;
                if entry.file_type()?.is_file() {
                    std::fs::copy(entry.path(), kept.join(entry.file_name()))?;
                }
            }
            Ok::<_, std::io::Error>(())
        };
        match keep() {
            Ok(()) => {
                format!(" (ONCEPAY_FAULT_SEED={}; history and logs are in {})", self.seed, kept.display())
            }
            Err(error) => {
                format!(" (ONCEPAY_FAULT_SEED={}; the history couldn't be kept: {error})", self.seed)
            }
        }
    }
}

/// When a request that was sent since then got its final answer.
fn answered_since(attempt: &Attempt, since: Nanos) -> Option<Nanos> {
    let answer = attempt.answer.as_ref().filter(|answer| answer.is_final() && attempt.sent_at >= since);
    answer.map(|answer| answer.at)
}
