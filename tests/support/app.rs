//! The service, inside the test process or as a process of its own.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use oncepay::audit::schedule::AuditInterval;
use oncepay::config::Config;
use oncepay::processor::{Adapter, ProcessorOptions, Sandbox};
use oncepay::server::{Stopper, adapter};
use oncepay::web::listener::Listener;
use serde_json::Value;

use super::acquirer::{Acquirer, WEBHOOK_SECRET};
use super::client::{ACQUIRER_WEBHOOK, Client};
use super::database::{TestDatabase, exposed};
use super::eventually;

/// Connections of an instance, unless a test wants another number. Half of the default, since a session costs Postgres
/// more than what most tests do with it, and all of them are opened at once.
pub const POOL_SIZE: u32 = 4;

/// A server in this process, on a free port.
pub struct App {
    pub client: Client,
    /// The processor, which notes every call. Shared by the instances of a test.
    pub sandbox: Arc<Sandbox>,
    stopper: Stopper,
    thread: Option<JoinHandle<()>>,
}

impl App {
    /// Starts one on `database` with default settings.
    pub fn start(database: &TestDatabase) -> Self {
        Self::start_with(database, |_| {})
    }

    /// Starts one with other settings.
    pub fn start_with(database: &TestDatabase, adjust: impl FnOnce(&mut Config)) -> Self {
        Self::start_sharing(database, Arc::new(Sandbox::recording()), adjust)
    }

    /// Starts one whose processor is `sandbox`.
    pub fn start_sharing(
        database: &TestDatabase,
        sandbox: Arc<Sandbox>,
        adjust: impl FnOnce(&mut Config),
    ) -> Self {
        Self::serve(database, sandbox, |config, sandbox| {
            adjust(config);
            Some(adapter::of_sandbox(sandbox, config.webhook_secrets().unwrap()))
        })
    }

    /// Starts one whose processor is `acquirer`, reached over HTTP.
    pub fn start_at(acquirer: &Acquirer, database: &TestDatabase, adjust: impl FnOnce(&mut Config)) -> Self {
        let options = acquirer.options();
        Self::serve(database, Arc::new(Sandbox::new()), |config, _| {
            config.processor = options;
            adjust(config);
            None
        })
    }

    /// Starts one whose processor is reached over HTTP, with these options.
    pub fn start_with_options(database: &TestDatabase, options: ProcessorOptions) -> Self {
        Self::serve(database, Arc::new(Sandbox::new()), |config, _| {
            config.processor = options;
            None
        })
    }

    /// Starts one and an acquirer, each of which knows where the other is.
    pub fn start_with_acquirer(database: &TestDatabase) -> (Acquirer, Self) {
        Self::start_beside(Acquirer::start(database), database)
    }

    /// The same with an acquirer that runs already.
    pub fn start_beside(mut acquirer: Acquirer, database: &TestDatabase) -> (Acquirer, Self) {
        let app = Self::start_at(&acquirer, database, |_| {});
        acquirer.stop();
        acquirer.send_to(&format!("{}{ACQUIRER_WEBHOOK}", app.client.base()));
        acquirer.start_again();
        // The service has noticed that it was away.
        eventually("the acquirer", || app.client.get("/readyz").status == 200);
        (acquirer, app)
    }

    /// Starts one whose processor is `adapter`.
    pub fn start_using(adapter: Adapter, database: &TestDatabase, adjust: impl FnOnce(&mut Config)) -> Self {
        Self::serve(database, Arc::new(Sandbox::new()), |config, _| {
            adjust(config);
            Some(adapter)
        })
    }

    /// `adjust` changes the settings and says which processor it is, if that isn't one of the settings.
    fn serve(
        database: &TestDatabase,
        sandbox: Arc<Sandbox>,
        adjust: impl FnOnce(&mut Config, Arc<Sandbox>) -> Option<Adapter>,
    ) -> Self {
        let mut config = Config::for_database(database.app_url.clone(), "m".repeat(32).into());
        // Out of the way of tests that look at unfinished requests.
        config.recovery_interval_ms = 600_000;
        // Each test audits at its end.
        config.audit.audit_interval_s = AuditInterval(None);
        config.pool_size = POOL_SIZE;
        config.webhook_secret = Some(WEBHOOK_SECRET.into());
        let adapter = adjust(&mut config, Arc::clone(&sandbox));
        let bound = Listener::new(config.listen, "--listen").unwrap();
        let client = Client::new(format!("http://{}", bound.address()));
        let (started, stopper) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            actix_web::rt::System::new().block_on(async move {
                let (server, stopper) = oncepay::server::serve(bound, &config, adapter).unwrap();
                started.send(stopper).unwrap();
                server.await.unwrap();
            });
        });
        Self { client, sandbox, stopper: stopper.recv().unwrap(), thread: Some(thread) }
    }

    /// A client of its port for operators.
    pub fn admin(&self) -> Client {
        Client::new(format!("http://{}", self.stopper.admin_address().expect("it has one")))
    }

    /// The policy of `charges.create` that it follows.
    pub fn policy(&self) -> Value {
        let document = self.client.get("/openapi.json").expect(200).json();
        document["paths"]["/v1/charges"]["post"]["x-idempotency"]["policy"].clone()
    }

    /// Changes the policy of `charges.create` as an operator with psql would, and waits until it's followed here.
    pub fn set_policy(&self, database: &TestDatabase, changes: &str) {
        database.set_policy("charges.create", changes);
        let stored = "SELECT to_jsonb(p) FROM idempotency_policies p WHERE operation = 'charges.create'";
        let stored: Value = serde_json::from_str(&database.text(stored)).unwrap();
        eventually("the policy", || {
            self.policy().as_object().unwrap().iter().all(|(name, value)| stored[name] == *value)
        });
    }

    /// How often the processor was asked to authorize: once per run of the handler.
    pub fn runs(&self) -> usize {
        self.sandbox.calls().iter().filter(|call| call.call == "authorize").count()
    }
}

impl Drop for App {
    fn drop(&mut self) {
        // The command is sent by the call; the future only waits for its end, as we do.
        drop(self.stopper.stop(false));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A server in a process of its own, for tests that kill it.
pub struct Process {
    child: Child,
    pub client: Client,
}

impl Process {
    /// Starts `oncepay serve` on `database` with further environment variables.
    pub fn start(database: &TestDatabase, environment: &[(&str, &str)]) -> Self {
        Self::spawn(database, environment, Stdio::inherit())
    }

    /// The same, and keeps what it logs.
    pub fn start_logging(database: &TestDatabase, environment: &[(&str, &str)]) -> Self {
        Self::spawn(database, environment, Stdio::piped())
    }

    fn spawn(database: &TestDatabase, environment: &[(&str, &str)], log: Stdio) -> Self {
        Self::try_start(Self::command(), database, environment, log)
            .unwrap_or_else(|said| panic!("it said {said:?}"))
    }

    /// `oncepay serve`.
    pub fn command() -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_oncepay"));
        command.arg("serve");
        command
    }

    /// The same with another command, where it may fail; then what it has said instead of that it serves.
    pub fn try_start(
        mut command: Command,
        database: &TestDatabase,
        environment: &[(&str, &str)],
        log: Stdio,
    ) -> Result<Self, String> {
        let mut child = command
            .env("DATABASE_URL", exposed(&database.app_url))
            .env("ONCEPAY_LISTEN", "127.0.0.1:0")
            .env("ONCEPAY_MASTER_KEY", "m".repeat(32))
            .env("ONCEPAY_WEBHOOK_SECRET", WEBHOOK_SECRET)
            .env("ONCEPAY_POOL_SIZE", POOL_SIZE.to_string())
            .env("ONCEPAY_SHUTDOWN_DELAY_MS", "0")
            // The tests' servers aren't safe from crashes.
            .env("RUST_LOG", "warn,oncepay::server::database=error")
            .env("ONCEPAY_AUDIT_INTERVAL_S", "never")
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        // A test binary has something to say of its own before.
        let is_prelude = |line: &String| line.is_empty() || line.starts_with("running ");
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let line = lines.find(|line| !is_prelude(line)).unwrap_or_default();
        match line.trim().strip_prefix("Serving on ") {
            Some(url) => Ok(Self { client: Client::new(url), child }),
            None => {
                let _ = child.kill();
                let _ = child.wait();
                Err(line)
            }
        }
    }

    /// What `oncepay serve` complains about with these settings, instead of serving.
    pub fn refusal(database: &TestDatabase, environment: &[(&str, &str)]) -> String {
        let mut child = Self::command()
            .env("DATABASE_URL", exposed(&database.app_url))
            .env("ONCEPAY_LISTEN", "127.0.0.1:0")
            .env("ONCEPAY_MASTER_KEY", "m".repeat(32))
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        if !line.is_empty() {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("it said {line:?}");
        }
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(3));
        String::from_utf8(output.stderr).unwrap()
    }

    /// Id of the process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Ends it and returns what it has logged, which must fit into a pipe.
    pub fn log(mut self) -> String {
        self.child.kill().unwrap();
        let mut log = String::new();
        self.child.stderr.take().expect("it was started for that").read_to_string(&mut log).unwrap();
        log
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: libc::c_int) {
        let pid = libc::pid_t::try_from(self.child.id()).unwrap();
        // SAFETY: it's our child and hasn't been waited for.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    }

    /// Waits until a fault has stopped it.
    pub fn wait_until_stopped(&self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        let stat = format!("/proc/{}/stat", self.child.id());
        loop {
            let text = std::fs::read_to_string(&stat).unwrap();
            let state = text.rsplit(')').next().unwrap().trim().chars().next();
            if state == Some('T') {
                return;
            }
            assert!(Instant::now() < deadline, "the process doesn't stop");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Lets it go on after it was stopped.
    pub fn go_on(&self) {
        self.signal(libc::SIGCONT);
    }

    /// Waits until it has died by itself, and tells whether that was by SIGKILL.
    pub fn was_killed(mut self) -> bool {
        use std::os::unix::process::ExitStatusExt;
        self.child.wait().unwrap().signal() == Some(libc::SIGKILL)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
