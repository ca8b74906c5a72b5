//! What each operation costs the database: statements, commits, bytes of its log, rows and index entries.
//!
//! Speed is measured by `load/bench`, on a machine that does nothing else. These figures are the same on any, so a change
//! that makes an operation dearer is noticed with the change, and whoever means it raises the bound beside it.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use diesel::QueryableByName;
use diesel::RunQueryDsl;
use diesel::sql_types::{BigInt, Text};
use oncepay::dev::postgres;
use oncepay::storage::db;
use serde_json::{Value, json};

use crate::support::database::fast_folder;
use crate::support::*;

/// Requests per operation: more than what a statement of the service's own is sent meanwhile, so that only those are
/// counted that each request sends.
const REQUESTS: usize = 50;

/// What a request costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cost {
    /// Statements, with those that begin and end transactions. Each is a round trip.
    statements: i64,
    /// Transactions that have written something. Each waits for the disk.
    commits: i64,
    /// Bytes of the write-ahead log, without images of whole pages.
    wal_bytes: i64,
    /// Rows that were inserted, updated or deleted.
    rows: i64,
    /// Entries of indexes, if each new version of a row is in each index of its table.
    index_entries: i64,
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { statements, commits, wal_bytes, rows, index_entries } = self;
        write!(f, "of({statements}, {commits}, {wal_bytes}, {rows}, {index_entries})")
    }
}

/// Statements, commits, bytes of the log, rows, index entries.
const fn of(statements: i64, commits: i64, wal_bytes: i64, rows: i64, index_entries: i64) -> Cost {
    Cost { statements, commits, wal_bytes, rows, index_entries }
}

/// Maximum costs. Statements, commits and rows are exact; bytes have a tenth of room, since pages split, and entries one,
/// since not every new version of a row finds room beside the old one. Charges have none: they put no version beside another.
const BOUNDS: &[(&str, Cost)] = &[
    ("charge", of(2, 2, 6_600, 8, 33)),
    ("charge with a reference", of(2, 2, 6_700, 8, 33)),
    ("authorization", of(2, 2, 4_500, 4, 19)),
    ("capture", of(13, 2, 7_200, 9, 34)),
    ("cancellation", of(12, 2, 4_600, 5, 20)),
    ("refund", of(12, 2, 8_100, 13, 37)),
    ("payout", of(11, 2, 6_100, 10, 27)),
    ("change of a charge", of(7, 1, 3_900, 4, 15)),
    ("inbound event", of(8, 1, 6_000, 8, 30)),
    ("replay", of(1, 0, 20, 0, 0)),
    ("list page", of(2, 0, 20, 0, 0)),
    ("balance", of(2, 0, 20, 0, 0)),
];

#[derive(QueryableByName)]
struct Statement {
    #[diesel(sql_type = BigInt)]
    id: i64,
    #[diesel(sql_type = Text)]
    query: String,
    #[diesel(sql_type = BigInt)]
    calls: i64,
}

/// What the database has done so far.
struct Reading {
    /// Calls of each statement, and the statement.
    statements: HashMap<i64, (i64, String)>,
    totals: [i64; 4],
}

impl Reading {
    fn take(database: &TestDatabase) -> Self {
        let calls = "SELECT queryid AS id, min(query) AS query, sum(calls)::bigint AS calls FROM pg_stat_statements \
             WHERE userid = 'oncepay_app'::regrole GROUP BY queryid";
        let statements = diesel::sql_query(calls).load::<Statement>(&mut database.as_superuser()).unwrap();
        let changed = |what: &str| {
            database.count(&format!(
                "SELECT coalesce(sum({what}), 0)::bigint FROM pg_stat_user_tables t, \
                 LATERAL (SELECT count(*) AS indexes FROM pg_index i WHERE i.indrelid = t.relid) AS i"
            ))
        };
        Self {
            statements: statements.into_iter().map(|s| (s.id, (s.calls, s.query))).collect(),
            totals: [
                database.count("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint"),
                database.count("SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint"),
                changed("n_tup_ins + n_tup_upd + n_tup_del"),
                changed("(n_tup_ins + n_tup_upd - n_tup_hot_upd) * indexes"),
            ],
        }
    }

    /// What each of the requests since `before` has cost, and their statements.
    fn cost_since(&self, before: &Self) -> (Cost, Vec<String>) {
        let requests = REQUESTS as i64;
        let mut told = Vec::new();
        let mut statements = 0;
        for (id, (calls, query)) in &self.statements {
            // It goes with the statement before.
            if query.starts_with("SET LOCAL") {
                continue;
            }
            let each = (calls - before.statements.get(id).map_or(0, |(calls, _)| *calls)) / requests;
            if each > 0 {
                statements += each;
                let words: Vec<_> = query.split_whitespace().collect();
                told.push(format!("{each} x {:.120}", words.join(" ")));
            }
        }
        told.sort();
        let [commits, wal_bytes, rows, index_entries] =
            std::array::from_fn(|n| (self.totals[n] - before.totals[n]) / requests);
        (Cost { statements, commits, wal_bytes, rows, index_entries }, told)
    }
}

/// A server that counts statements. `None` if it lacks the extension for that.
fn counting_server(cluster: &Path) -> Option<postgres::Server> {
    let settings = postgres::Settings {
        cluster_dir: cluster,
        durable: true,
        max_connections: 50,
        port: None,
        supply: database::supply(),
    };
    let server = postgres::Server::start(&settings).ok()?;
    let mut superuser = db::connect(&server.superuser_url("postgres").into()).unwrap();
    let available = "SELECT * FROM pg_available_extensions WHERE name = 'pg_stat_statements'";
    if diesel::sql_query(available).execute(&mut superuser).unwrap() == 0 {
        return None;
    }
    for setting in [
        "shared_preload_libraries = 'pg_stat_statements'",
        // Images of pages depend on when the last checkpoint was, and vacuum on when it comes by.
        "full_page_writes = off",
        "autovacuum = off",
        "fsync = off",
    ] {
        execute(&mut superuser, &format!("ALTER SYSTEM SET {setting}"));
    }
    drop(superuser);
    server.stop().unwrap();
    Some(postgres::Server::start(&settings).unwrap())
}

/// Sends a request, by its number.
type Send<'a> = Box<dyn Fn(&Client, usize) + 'a>;

struct Scene {
    database: TestDatabase,
    merchant: Merchant,
}

impl Scene {
    /// Runs an instance for `work`. When it has ended, the statistics of its sessions are complete.
    fn with_app<T>(&self, work: impl FnOnce(&App) -> T) -> T {
        // What a worker asks for all the time isn't the requests'.
        work(&App::start_with(&self.database, |config| config.delivery.delivery_interval_ms = 600_000))
    }

    /// Ids of new charges.
    fn charges(&self, body: &Value) -> Vec<String> {
        self.with_app(|app| {
            let client = app.client.as_merchant(&self.merchant);
            (0..REQUESTS).map(|_| client.charge(&fresh_key(), body).expect(201).field("id")).collect()
        })
    }

    fn payouts(&self) -> Vec<String> {
        self.with_app(|app| {
            let client = app.client.as_merchant(&self.merchant);
            (0..REQUESTS).map(|_| pay_out(&client).field("id")).collect()
        })
    }

    /// The requests of an operation. What they need is there afterwards.
    fn requests(&self, operation: &str) -> Send<'_> {
        let authorized =
            json!({"amount": "12.50", "currency": "USD", "payment_method": "pm_card_visa", "capture": false});
        match operation {
            "charge" => Box::new(|client, _| drop(client.charge(&fresh_key(), &visa()).expect(201))),
            "charge with a reference" => Box::new(|client, n| {
                let mut body = visa();
                body["reference"] = json!(format!("order-{n}"));
                client.charge(&fresh_key(), &body).expect(201);
            }),
            "authorization" => {
                Box::new(move |client, _| drop(client.charge(&fresh_key(), &authorized).expect(201)))
            }
            "capture" => {
                let charges = self.charges(&authorized);
                Box::new(move |client, n| {
                    let path = format!("/v1/charges/{}/capture", charges[n]);
                    client.send("POST", &path, &fresh_key(), &json!({})).expect(200);
                })
            }
            "cancellation" => {
                let charges = self.charges(&authorized);
                Box::new(move |client, n| {
                    let path = format!("/v1/charges/{}/cancel", charges[n]);
                    client.send("POST", &path, &fresh_key(), &json!({})).expect(200);
                })
            }
            "refund" => {
                let charges = self.charges(&visa());
                Box::new(move |client, n| {
                    let body = json!({"charge_id": charges[n], "amount": "1.00"});
                    client.send("POST", "/v1/refunds", &fresh_key(), &body).expect(201);
                })
            }
            "payout" => Box::new(|client, _| drop(pay_out(client))),
            "change of a charge" => {
                let charges = self.charges(&visa());
                Box::new(move |client, n| {
                    let path = format!("/v1/charges/{}", charges[n]);
                    let body = json!({"description": format!("Order {n}")});
                    client.send("PATCH", &path, &fresh_key(), &body).expect(200);
                })
            }
            "inbound event" => {
                let payouts = self.payouts();
                Box::new(move |client, n| {
                    let data = json!({"merchant": self.merchant.id, "reference": payouts[n]});
                    let body = json!({"type": "payout.paid", "data": data}).to_string();
                    client.delivery(&fresh_key(), &body).send().expect(200);
                })
            }
            "replay" => {
                self.with_app(|app| {
                    app.client.as_merchant(&self.merchant).charge("again", &visa()).expect(201);
                });
                Box::new(|client, _| assert!(client.charge("again", &visa()).expect(201).is_replay()))
            }
            "list page" => Box::new(|client, _| drop(client.get("/v1/charges?limit=20").expect(200))),
            "balance" => Box::new(|client, _| drop(client.get("/v1/balance").expect(200))),
            _ => unreachable!("it has no bound"),
        }
    }
}

fn pay_out(client: &Client) -> Response {
    let body = json!({"amount": "0.10", "currency": "USD", "destination": "ba_main"});
    client.send("POST", "/v1/payouts", &fresh_key(), &body).expect(201)
}

#[test]
fn no_operation_costs_the_database_more_than_its_bound() {
    if cluster::differs("the bounds are those of one Postgres") {
        return;
    }
    let folder = tempfile::Builder::new().prefix("oncepay-costs-").tempdir_in(fast_folder()).unwrap();
    let Some(server) = counting_server(&folder.path().join("postgres")) else {
        println!("skipped: no server with pg_stat_statements");
        return;
    };
    let database = TestDatabase::on(&server);
    execute(&mut database.as_superuser(), "CREATE EXTENSION pg_stat_statements");
    let merchant = database.merchant();
    let scene = Scene { database, merchant };

    let mut complaints = Vec::new();
    for (operation, bound) in BOUNDS {
        let send = scene.requests(operation);
        let before = Reading::take(&scene.database);
        scene.with_app(|app| {
            let client = app.client.as_merchant(&scene.merchant);
            (0..REQUESTS).for_each(|n| send(&client, n));
        });
        let (cost, statements) = Reading::take(&scene.database).cost_since(&before);
        println!("{operation}: {cost}");
        let is_within = cost.statements <= bound.statements
            && cost.commits <= bound.commits
            && cost.wal_bytes <= bound.wal_bytes
            && cost.rows <= bound.rows
            && cost.index_entries <= bound.index_entries;
        if !is_within {
            let statements = statements.join("\n    ");
            complaints.push(format!("{operation}: {cost} instead of at most {bound}\n    {statements}"));
        }
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}
