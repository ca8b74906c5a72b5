//! `oncepay doctor`: examines all that an instance with these settings depends on, and says of each what to do.
//!
//! Promised: it changes nothing. Its session of the database is read-only, it asks the processor only for a page of its
//! list, and it lets the address go at once.

use std::io::{ErrorKind, Write};
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::sql_types::{Array, BigInt, Text};
use diesel::{PgConnection, RunQueryDsl};
use secrecy::ExposeSecret;
use serde::Serialize;

use crate::base::derived_secrets::Vault;
use crate::base::spans;
use crate::config::Config;
use crate::error::Failure;
use crate::server::{adapter, database};
use crate::storage::fitness::{self, Remark, Subject, Unfit, Verdict};
use crate::storage::master_keys::{self, Acquaintance};
use crate::storage::session::{self, Handling};
use crate::storage::sql::statement;
use crate::storage::{clock, db};
use crate::web::listener;

use super::exit::Stop;
use super::health;
use super::shared::{Form, as_sentence, sentence, write_document, write_line};

/// Maximum time for an answer of the processor.
const PROCESSOR_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum number of endpoints that are named.
const NAMED_MAX: usize = 3;

/// Options of the `doctor` command.
#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    form: Form,
    /// Settings of the service
    #[command(flatten)]
    config: Config,
}

/// How an examination ended, from best to worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    /// All is well.
    Ok,
    /// Another examination must succeed first.
    Skipped,
    /// The service works, and something should be otherwise.
    Warning,
    /// The service doesn't work, or can't keep its promises.
    Failure,
}

impl State {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Skipped => "skipped",
            Self::Warning => "warning",
            Self::Failure => "FAILURE",
        }
    }
}

/// The result of one examination.
#[derive(Debug, Serialize)]
struct Finding {
    /// What was examined.
    check: &'static str,
    state: State,
    /// What was found and, unless all is well, what to do.
    says: String,
}

impl Finding {
    fn new(check: &'static str, state: State, says: impl Into<String>) -> Self {
        Self { check, state, says: says.into() }
    }
}

/// The examinations as JSON.
#[derive(Serialize)]
struct Document<'a> {
    worst: State,
    checks: &'a [Finding],
}

/// Runs `oncepay doctor`.
pub fn run(options: &Options, out: &mut impl Write) -> Result<(), Stop> {
    let findings = examine(&options.config);
    let worst = findings.iter().map(|finding| finding.state).max().unwrap_or(State::Ok);
    if options.form.json {
        write_document(out, &Document { worst, checks: &findings })?;
    } else {
        for Finding { check, state, says } in &findings {
            write_line(out, &format!("{:<8} {check:<17}  {says}", state.as_str()));
        }
    }
    match findings.iter().filter(|finding| finding.state == State::Failure).count() {
        0 => Ok(()),
        1 => Err(Stop::Found("1 examination failed.".to_owned())),
        number => Err(Stop::Found(format!("{number} examinations failed."))),
    }
}

fn examine(config: &Config) -> Vec<Finding> {
    let mut findings = vec![settings(config)];
    let reached = reach(config);
    findings.push(match &reached {
        Ok(_) => Finding::new("database", State::Ok, "It answers, and connections keep their sessions."),
        Err(says) => Finding::new("database", State::Failure, says.as_str()),
    });
    match reached {
        Ok(mut conn) => findings.extend(examine_database(&mut conn, config)),
        Err(_) => findings.extend(
            ["server", "migrations", "role", "connections", "clock", "master key", "webhook endpoints"]
                .map(|check| skipped(check, "The database can't be asked.")),
        ),
    }
    findings.extend([processor(config), processor_events(config), address(config)]);
    findings
}

fn skipped(check: &'static str, says: &str) -> Finding {
    Finding::new(check, State::Skipped, says)
}

fn settings(config: &Config) -> Finding {
    let check_spans = || config.otlp_endpoint.as_ref().map_or(Ok(()), spans::check);
    match config.validate().and_then(|()| check_spans()) {
        Ok(()) => Finding::new("settings", State::Ok, "They fit together."),
        Err(refused) => Finding::new("settings", State::Failure, refused),
    }
}

/// Connects. The error is what to say.
fn reach(config: &Config) -> Result<PgConnection, String> {
    let handling = session::inspect(config.database_url.expose_secret()).map_err(|error| {
        let remedy = session::remedy(&error)
            .unwrap_or("Start the server, end connections that it has too many of, or correct its address in DATABASE_URL.");
        format!("Can't connect: {} {remedy}", as_sentence(&error.to_string()))
    })?;
    match handling {
        Handling::Kept => {}
        Handling::Mixed => return Err(Unfit::SessionsMixed.explained()),
        Handling::Scattered => return Err(Unfit::SessionsScattered.explained()),
    }
    db::connect(&config.database_url)
}

fn examine_database(conn: &mut PgConnection, config: &Config) -> Vec<Finding> {
    let remarks = fitness::remarks(conn, database::connections(config)).unwrap_or_else(|failure| {
        vec![Remark {
            subject: Subject::Server,
            text: format!("Its settings can't be read: {}.", failure.detailed()),
        }]
    });
    // Comes after the question whether the database can be written.
    let guarded = conn.batch_execute("SET default_transaction_read_only = on; SET statement_timeout = '10s'");
    let verdict = match guarded.map_err(Failure::from).and_then(|()| fitness::check(conn)) {
        Ok(verdict) => verdict,
        Err(failure) => Verdict::Refused(failure.detailed()),
    };
    let of = |subject: Subject| {
        let about = remarks.iter().filter(|remark| remark.subject == subject);
        about.map(|remark| remark.text.as_str()).collect::<Vec<_>>().join(" ")
    };
    let or = |check: &'static str, state: State, remarks: String, well: &str| match remarks.is_empty() {
        true => Finding::new(check, State::Ok, well),
        false => Finding::new(check, state, remarks),
    };
    let server = [of(Subject::Server), of(Subject::Nodes)].join(" ").trim().to_owned();
    let read_only = of(Subject::ReadOnly);
    let mut findings = vec![match &verdict {
        Verdict::Refused(refused) => Finding::new("server", State::Failure, refused.as_str()),
        _ if !read_only.is_empty() => {
            Finding::new("server", State::Failure, format!("{read_only} {server}").trim_end())
        }
        _ => or(
            "server",
            State::Warning,
            server,
            "Its version, encoding, language and durability are as needed.",
        ),
    }];
    findings.push(match &verdict {
        Verdict::Fit => Finding::new("migrations", State::Ok, "All of this release have been run."),
        Verdict::Unfit(Unfit::MigrationsMissing) => {
            let missing = fitness::missing_migrations(conn).unwrap_or_default();
            let which = match missing.as_slice() {
                [] => "It lacks objects of this release, or it's another database.".to_owned(),
                [one] => format!("{one} is missing."),
                [first, .., last] => format!("{} are missing, {first} to {last}.", missing.len()),
            };
            let says = format!("{which} {}", Unfit::MigrationsMissing.remedy());
            Finding::new("migrations", State::Failure, says)
        }
        Verdict::Unfit(unfit @ Unfit::DistributionUnfinished) => {
            Finding::new("migrations", State::Failure, unfit.explained())
        }
        // Also a role that lacks other privileges may look.
        Verdict::Unfit(_) => match fitness::missing_migrations(conn) {
            Ok(missing) if missing.is_empty() => {
                Finding::new("migrations", State::Ok, "All of this release have been run.")
            }
            _ => skipped("migrations", "The role must be able to look."),
        },
        Verdict::Refused(_) => skipped("migrations", "The server isn't as needed."),
    });
    findings.push(match &verdict {
        Verdict::Unfit(unfit @ Unfit::PrivilegesMissing) => {
            Finding::new("role", State::Failure, unfit.explained())
        }
        // Without what the database is there for: the ledger that not even the service can change.
        _ => or("role", State::Failure, of(Subject::Role), "It owns nothing, and has what it needs."),
    });
    findings.push(or(
        "connections",
        State::Warning,
        of(Subject::Connections),
        "The server, the database and the role allow as many as the instance opens.",
    ));
    findings.push(match clock::skew(conn) {
        Ok(skew) => or(
            "clock",
            State::Warning,
            of(Subject::Clock),
            &format!("It's {} ms off the database's.", skew.abs().num_milliseconds()),
        ),
        Err(failure) => Finding::new("clock", State::Warning, failure.detailed()),
    });
    let why = match verdict {
        Verdict::Fit => {
            findings.extend([master_key(conn, config), endpoints(conn)]);
            return findings;
        }
        Verdict::Unfit(Unfit::PrivilegesMissing) => "The role must have its privileges first.",
        Verdict::Unfit(_) => "The migrations must be run first.",
        Verdict::Refused(_) => "The server must be as needed first.",
    };
    findings.extend(["master key", "webhook endpoints"].map(|check| skipped(check, why)));
    findings
}

fn master_key(conn: &mut PgConnection, config: &Config) -> Finding {
    let vault = Vault::new(config.master_key.clone(), config.previous_master_key.clone());
    match master_keys::look(conn, &vault) {
        Ok(Acquaintance::Known(version)) => {
            Finding::new("master key", State::Ok, format!("It's the database's, in version {}.", version.0))
        }
        Ok(Acquaintance::New(version)) => Finding::new(
            "master key",
            State::Ok,
            format!("The first start makes it known to the database, as version {}.", version.0),
        ),
        Err(refused) => Finding::new("master key", State::Failure, refused.to_string()),
    }
}

/// Webhook endpoints that take no messages at the moment. Merchants' own doing isn't told.
fn endpoints(conn: &mut PgConnection) -> Finding {
    let found = statement::<(BigInt, BigInt, Array<Text>)>(
        "/* of all merchants */ SELECT count(*) FILTER (WHERE failing_since IS NOT NULL), \
             count(*) FILTER (WHERE paused_until > clock_timestamp()), \
             coalesce(array_agg('we_' || replace(id::text, '-', '') ORDER BY failing_since, id) \
                 FILTER (WHERE failing_since IS NOT NULL OR paused_until > clock_timestamp()), ARRAY[]::text[]) \
         FROM webhook_endpoints WHERE status = 'enabled'",
    )
    .get_result::<(i64, i64, Vec<String>)>(conn);
    match found {
        Ok((0, 0, _)) => Finding::new("webhook endpoints", State::Ok, "All that are enabled take messages."),
        Ok((failing, paused, ids)) => {
            let more = if ids.len() > NAMED_MAX { ", …" } else { "" };
            let named = ids.iter().take(NAMED_MAX).cloned().collect::<Vec<_>>().join(", ");
            Finding::new(
                "webhook endpoints",
                State::Warning,
                format!(
                    "{failing} fail and {paused} have asked for a pause: {named}{more}. Tell their merchants: \
                     GET /v1/webhook-endpoints shows them since when."
                ),
            )
        }
        Err(error) => Finding::new("webhook endpoints", State::Warning, sentence(error)),
    }
}

/// Asks the processor for a page of its list, which also tells whether it takes the API key.
fn processor(config: &Config) -> Finding {
    let check = "processor";
    let Some(url) = &config.processor.url else {
        let says = "A sandbox plays it, and no money is moved. ONCEPAY_PROCESSOR_URL names a real one.";
        return Finding::new(check, State::Warning, says);
    };
    let books = match adapter::of_options(&config.processor) {
        Ok(adapter) => adapter.books,
        Err(refused) => return Finding::new(check, State::Failure, refused),
    };
    let Some(books) = books else { return skipped(check, "It keeps no list to ask for.") };
    let asked = actix_web::rt::System::new()
        .block_on(async { tokio::time::timeout(PROCESSOR_TIMEOUT, books.operations(0, 1)).await });
    let cause = match asked {
        Ok(Ok(_)) => return Finding::new(check, State::Ok, format!("{url} answers, and takes the API key.")),
        Ok(Err(error)) => as_sentence(&error.to_string()),
        Err(_) => format!("It takes longer than {} s.", PROCESSOR_TIMEOUT.as_secs()),
    };
    let remedy = "Check ONCEPAY_PROCESSOR_URL, ONCEPAY_PROCESSOR_API_KEY, and the way there.";
    Finding::new(check, State::Failure, format!("{url} doesn't answer as it should: {cause} {remedy}"))
}

fn processor_events(config: &Config) -> Finding {
    let check = "processor events";
    match config.webhook_secrets().map(|secrets| secrets.len()) {
        Ok(1..) => Finding::new(check, State::Ok, "Their signatures can be verified."),
        Ok(0) => Finding::new(
            check,
            State::Warning,
            "They are refused. Set ONCEPAY_WEBHOOK_SECRET to the secret with which the processor signs them.",
        ),
        Err(refused) => Finding::new(check, State::Failure, refused),
    }
}

/// Whether the instance could listen, or one does: for clients and, if it's elsewhere, for operators.
fn address(config: &Config) -> Finding {
    let of_operators = config.admin_listen.map(|listen| (listen, "ONCEPAY_ADMIN_LISTEN"));
    let all = [(config.listen, "ONCEPAY_LISTEN")].into_iter().chain(of_operators);
    let (well, unwell): (Vec<_>, Vec<_>) =
        all.map(|(listen, variable)| can_listen(listen, variable)).partition(Result::is_ok);
    let (state, says) = if unwell.is_empty() { (State::Ok, well) } else { (State::Failure, unwell) };
    let says: Vec<_> = says.into_iter().map(|said| said.unwrap_or_else(|said| said)).collect();
    Finding::new("address", state, says.join(" "))
}

/// Whether an address can be listened on, or the service does already, as a sentence. The error says what to do.
fn can_listen(listen: SocketAddr, variable: &str) -> Result<String, String> {
    match TcpListener::bind(listen) {
        Ok(_) => Ok(format!("{listen} is free.")),
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            match health::ask(listener::reachable(listen), "/healthz") {
                Ok(()) => Ok(format!("A service that is well has {listen} already.")),
                Err(_) => Err(format!(
                    "Another program has {listen}. Stop that one, or choose another address with {variable}."
                )),
            }
        }
        Err(error) => {
            Err(format!("Can't listen on {listen}: {error}. Choose another address with {variable}."))
        }
    }
}
