//! The commands `keys`, `policies`, `settings` and `storage`.

use std::process::Command;

use serde_json::{Value, json};

use crate::support::database::exposed;
use crate::support::*;

/// Runs `oncepay` with `arguments`: its exit status, what it printed, and what it complained about.
fn oncepay(database: &TestDatabase, arguments: &[&str]) -> (bool, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_oncepay"))
        .args(arguments)
        .env("DATABASE_URL", exposed(&database.app_url))
        .env("USER", "alice")
        .env_remove("SUDO_USER")
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.success(), text(output.stdout), text(output.stderr))
}

fn ok(database: &TestDatabase, arguments: &[&str]) -> String {
    let (success, printed, complained) = oncepay(database, arguments);
    assert!(success, "{arguments:?}: {complained}");
    printed
}

fn fails(database: &TestDatabase, arguments: &[&str]) -> String {
    let (success, _, complained) = oncepay(database, arguments);
    assert!(!success, "{arguments:?}");
    complained
}

#[test]
fn policies_are_listed_set_and_remembered() {
    let database = TestDatabase::new();
    // No service has run yet: the rows are made here.
    let list = ok(&database, &["policies", "list"]);
    assert_eq!(list.lines().count(), oncepay::server::operations().len());
    assert!(list.contains("charges.create") && list.contains("ttl_seconds=86400"), "{list}");
    let set =
        ok(&database, &["policies", "set", "charges.create", "enforcement=observe", "rollout_percent=10"]);
    for setting in ["enforcement=observe", "rollout_percent=10", "ttl_seconds=86400"] {
        assert!(set.contains(setting), "{set}");
    }
    let history = ok(&database, &["policies", "history", "charges.create"]);
    assert_eq!(history.lines().count(), 1);
    assert!(
        history.contains("alice (command line): enforcement=enforce→observe rollout_percent=100→10"),
        "{history}"
    );
    for (arguments, complaint) in [
        (&["charges.create", "enforcement=maybe"][..], "enforcement must be one of enforce, observe, off"),
        (&["charges.create", "ttl_seconds=59"], "ttl_seconds must be an integer from 60 to 2592000"),
        (&["charges.create", "ttl=60"], "ttl is not a known field"),
        (&["charges.create", "ttl_seconds"], "name=value"),
        (&["charges.destroy", "ttl_seconds=60"], "There is no such operation."),
    ] {
        let complained = fails(&database, &[&["policies", "set"], arguments].concat());
        assert!(complained.contains(complaint), "{arguments:?}: {complained}");
    }
    assert_eq!(ok(&database, &["policies", "history"]).lines().count(), 1, "refused whole");
}

#[test]
fn stuck_keys_are_listed_retried_and_released() {
    let database = TestDatabase::new();
    let merchant = database.merchant();
    let app = App::start_with(&database, |config| {
        config.recovery_interval_ms = 50;
        config.recovery_delay_ms = 1;
        config.recovery_attempts_max = 1;
    });
    let client = app.client.as_merchant(&merchant);
    assert_eq!(ok(&database, &["keys", "list"]), "0 keys\n");
    execute(&mut database.as_owner(), "ALTER TABLE events ADD CONSTRAINT bug CHECK (false) NOT VALID");
    for key in ["a", "b", "c"] {
        client.charge(key, &visa()).expect_problem(500, "internal");
    }
    let parked = "SELECT count(*) FROM idempotency_keys WHERE parked_at IS NOT NULL";
    eventually("the parking", || database.count(parked) == 3);
    let (success, list, complained) =
        oncepay(&database, &["keys", "list", "--status", "parked", "--limit", "2"]);
    assert!(!success && complained.contains("2 of them wait for you."), "{complained}");
    assert!(list.contains("2 keys, and more") && list.contains("last_error=internal"), "{list}");
    execute(&mut database.as_owner(), "ALTER TABLE events DROP CONSTRAINT bug");

    let id = |key: &str| format!("{}/{key}", merchant.id);
    assert!(ok(&database, &["keys", "show", &id("a")]).contains("parked since"));
    ok(&database, &["keys", "retry", &id("a")]);
    eventually("its recovery", || database.rows("charges") == 1);
    ok(&database, &["keys", "release", &id("b")]);
    assert!(!client.charge("b", &visa()).expect(201).is_replay());
    assert_eq!(ok(&database, &["keys", "retry", "--all-parked"]), "1 requests will be tried again.\n");
    eventually("the last recovery", || database.rows("charges") == 3);
    assert!(ok(&database, &["keys", "list", "--status", "completed"]).contains("3 keys\n"));
    assert_eq!(ok(&database, &["keys", "list", "--status", "completed", "--older-than", "1h"]), "0 keys\n");
    let listed = ok(&database, &["keys", "list", "--status", "completed"]);
    let oldest = listed.lines().filter_map(|line| line.split_once("  ")).map(|(time, _)| time).min().unwrap();
    let until = ok(&database, &["keys", "list", "--status", "completed", "--older-than", oldest]);
    assert_eq!(until.lines().last(), Some("1 keys"), "a time as shown includes its key: {until}");
    assert!(ok(&database, &["keys", "show", &id("c")]).contains("status=201"));
    for (arguments, complaint) in [
        (vec!["retry".to_owned(), id("a")], "is finished"),
        (vec!["retry".to_owned(), id("z")], "There is no request with this idempotency key."),
        (vec!["show".to_owned(), "a".to_owned()], "isn't of the form mer_…/key"),
        (vec!["list".to_owned(), "--status=stuck".to_owned()], "must be one of in_progress"),
        (vec!["list".to_owned(), "--older-than=long".to_owned()], "must be a number of seconds"),
        (vec!["retry".to_owned()], "<ID>"),
    ] {
        let arguments: Vec<_> = std::iter::once("keys").chain(arguments.iter().map(String::as_str)).collect();
        let complained = fails(&database, &arguments);
        assert!(complained.contains(complaint), "{arguments:?}: {complained}");
    }
}

/// `ops/SETTINGS.md` is made by `cargo run -- settings > ops/SETTINGS.md`.
#[test]
fn the_reference_of_settings_is_what_the_program_reads() {
    let output = Command::new(env!("CARGO_BIN_EXE_oncepay"))
        .arg("settings")
        .env("ONCEPAY_MASTER_KEY", "from the environment")
        .env("ONCEPAY_ACQUIRER_URL", "http://from.the.environment")
        .output()
        .unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && !printed.contains("from the environment"), "{printed}");
    for row in [
        "| `ONCEPAY_POOL_SIZE` | `--pool-size` | `8` |",
        "| `ONCEPAY_MASTER_KEY` | `--master-key` | required |",
        "| `ONCEPAY_READY_WITHOUT_PROCESSOR` | `--ready-without-processor` | `false` |",
        "Also read as `ONCEPAY_ACQUIRER_URL`.",
        "| `ONCEPAY_OWNER_DATABASE_URL` | `migrate`, `seed` | required |",
    ] {
        assert!(printed.contains(row), "{row}\nis not in\n{printed}");
    }
    let kept = concat!(env!("CARGO_MANIFEST_DIR"), "/ops/SETTINGS.md");
    let kept = std::fs::read_to_string(kept).unwrap();
    assert!(kept == printed, "run `cargo run -- settings > ops/SETTINGS.md`");
}

#[test]
fn the_reference_of_settings_has_each_that_a_commands_help_shows() {
    let said = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_oncepay")).args(arguments).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let reference = said(&["settings"]);
    let (service, others) = reference.split_once("## Other commands").expect("two tables");
    let mut told = 0;
    for command in ["serve", "migrate", "dev", "seed", "simulator", "listen", "trigger", "audit"] {
        let help = said(&[command, "--help"]);
        for rest in help.split("[env: ").skip(1) {
            let name: String = rest.chars().take_while(|letter| !"=]".contains(*letter)).collect();
            // The help shows no value of a secret, not even that it has none.
            let is_secret = rest.as_bytes()[name.len()] == b']';
            let rows = if command == "serve" { vec![service] } else { vec![service, others] };
            let rows = rows.into_iter().flat_map(str::lines);
            let mut rows = rows.filter(|row| row.starts_with(&format!("| `{name}` |")));
            assert!(
                rows.any(|row| row.contains("*Secret.*") == is_secret),
                "{name} of {command} isn't in the reference as it is"
            );
            told += 1;
        }
    }
    assert!(told > 60, "{told}");
}

/// Stores that so many requests for charges found `found`, `days_ago`, at most `at_most_s` after the first.
fn saw(database: &TestDatabase, found: &str, at_most_s: u32, requests: u32, days_ago: u32) {
    execute(
        &mut database.as_app(),
        &format!(
            "INSERT INTO idempotency_retry_delays (operation, found, at_most_seconds, slot, day, since, requests) \
             SELECT 'charges.create', '{found}', {at_most_s}, (day - date '2000-01-01') % 90, day, \
                 statement_timestamp() - interval '{days_ago} days 1 hour', {requests} \
             FROM (SELECT (statement_timestamp() AT TIME ZONE 'UTC')::date - {days_ago} AS day) AS days"
        ),
    );
}

#[test]
fn a_ttl_is_recommended_from_the_retries_that_were_seen() {
    let database = TestDatabase::new();
    let recommend = |arguments: &[&str]| ok(&database, &[&["policies", "recommend"], arguments].concat());
    let report = |arguments: &[&str]| -> Value {
        let arguments = [&["--json", "--operation", "charges.create"], arguments].concat();
        let document: Value = serde_json::from_str(&recommend(&arguments)).unwrap();
        document["operations"][0].clone()
    };
    assert!(recommend(&[]).contains("No requests were counted yet."), "{}", recommend(&[]));
    saw(&database, "new", 1, 48_000, 0);
    saw(&database, "answer", 10, 999, 8);
    let few = report(&[]);
    assert_eq!(few["recommended"]["ttl_seconds"], 86_400);
    let text = recommend(&[]);
    for part in [
        "charges.create: answers are kept for 24 h, then refused for 30 d, then free",
        "Too few retries came after an answer to tell: 999 in 8 d. It takes 1,000 in 7 d. The TTL stays.",
        "Recommended TTL: 24 h, as it is",
        "Operations that were not requested: ",
    ] {
        assert!(text.contains(part), "{part} isn't in\n{text}");
    }

    saw(&database, "answer", 1_800, 19_000, 7);
    saw(&database, "unfinished", 86_400, 500, 7);
    saw(&database, "answer", 28_800, 1, 7);
    let at_ease = report(&[]);
    assert_eq!(at_ease["recommended"]["ttl_seconds"], 86_400, "never below what clients expect");
    let shorter = |report: &Value, ttl_s: u32| {
        let rows = report["recommended"]["shorter"].as_array().unwrap().clone();
        let row = rows.into_iter().find(|row| row["ttl_seconds"] == ttl_s).unwrap();
        (row["refused"].as_u64().unwrap(), row["executed_again"].as_u64().unwrap())
    };
    assert_eq!(shorter(&at_ease, 600), (19_001, 0));
    assert_eq!(shorter(&at_ease, 3_600), (1, 0));
    assert_eq!(shorter(&at_ease, 86_400), (0, 0));
    assert_eq!(report(&["--days", "8"])["recommended"]["ttl_seconds"], 86_400);
    let days = report(&["--days", "2"]);
    assert_eq!((&days["retries"], &days["new_keys"]), (&json!([]), &json!(48_000)));

    // Three more that came too late, of some twenty thousand, are more than one in ten thousand.
    saw(&database, "expired", 129_600, 3, 1);
    let late = report(&[]);
    assert_eq!(late["recommended"]["ttl_seconds"], 3 * 86_400);
    assert_eq!(shorter(&late, 86_400), (3, 0));
    // The costs are those of the TTLs, and keys per day those since yesterday.
    let keys_per_day = late["keys_per_day"].as_u64().unwrap();
    let keys: Vec<_> = late["costs"].as_array().unwrap().iter().map(|cost| cost["answers"].clone()).collect();
    assert_eq!(keys, [json!(keys_per_day), json!(3 * keys_per_day)]);
    assert!((48_000 / 2..48_000 * 24).contains(&keys_per_day), "{keys_per_day}");
    let text = recommend(&[]);
    for part in [
        "All 20,003 retries that came after an answer came within 36 h.",
        "Recommended TTL: 3 d instead of 24 h",
        "! 3 retries came after the TTL and were refused.",
        "oncepay policies set charges.create ttl_seconds=259200",
        "500  a request in progress",
    ] {
        assert!(text.contains(part), "{part} isn't in\n{text}");
    }
    // It only reads; and what it prints works.
    assert_eq!(database.rows("idempotency_policies"), 0);
    ok(&database, &["policies", "set", "charges.create", "ttl_seconds=259200"]);
    assert!(recommend(&[]).contains("Recommended TTL: 3 d, as it is"));
    let complained = fails(&database, &["policies", "recommend", "--operation", "charges.destroy"]);
    assert!(complained.contains("There is no such operation."), "{complained}");
}

#[test]
fn a_ttl_is_not_below_the_time_for_which_webhooks_are_sent_again() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    saw(&database, "answer", 10, 2_000, 10);
    let recommended = |arguments: &[&str]| {
        let arguments =
            [&["policies", "recommend", "--json", "--operation", "charges.create"], arguments].concat();
        let document: Value = serde_json::from_str(&ok(&database, &arguments)).unwrap();
        document["operations"][0]["recommended"]["ttl_seconds"].clone()
    };
    assert_eq!(recommended(&[]), 86_400);
    let endpoint = json!({"url": "https://example.com/hooks", "event_types": ["*"]});
    client.send("POST", "/v1/webhook-endpoints", "w", &endpoint).expect(201);
    assert_eq!(recommended(&[]), 3 * 86_400);
    assert_eq!(recommended(&["--delivery-give-up-after-s", "604800"]), 7 * 86_400);
}

#[test]
fn storage_says_what_to_do_about_tables_and_indexes() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    app.client.as_merchant(&database.merchant()).charge("k", &visa()).expect(201);
    let report = || -> Value { serde_json::from_str(&oncepay(&database, &["storage", "--json"]).1).unwrap() };
    let has = |subject: &str, statement: &str| {
        let findings = report()["findings"].as_array().unwrap().clone();
        findings.iter().any(|finding| finding["subject"] == subject && finding["statement"] == statement)
    };
    let ours = report();
    let names: Vec<_> =
        ours["tables"].as_array().unwrap().iter().map(|table| table["name"].clone()).collect();
    assert!(names.contains(&json!("idempotency_keys")) && names.contains(&json!("postings")), "{names:?}");
    let mut owner = database.as_owner();
    for statement in [
        "CREATE TABLE junk (number integer) WITH (autovacuum_enabled = false)",
        "CREATE INDEX junk_by_number ON junk (number)",
        "INSERT INTO junk SELECT generate_series(1, 30000)",
        "DELETE FROM junk WHERE number > 10000",
    ] {
        execute(&mut owner, statement);
    }
    let broken = "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'junk_by_number'::regclass";
    execute(&mut database.as_superuser(), broken);
    // The session hands in its counters when it ends, at the latest.
    drop(owner);
    eventually("the dead rows", || has("junk", "VACUUM (ANALYZE, VERBOSE) junk"));
    assert!(has("junk", "ALTER TABLE junk RESET (autovacuum_enabled)"));
    assert!(has("junk_by_number", "DROP INDEX CONCURRENTLY junk_by_number"));
    let (success, text, complained) = oncepay(&database, &["storage"]);
    assert!(!success && complained.contains("findings"), "{complained}");
    assert!(text.contains("! junk: 20,000 dead rows, 66.66 % of all. The last vacuum was never."), "{text}");

    // Each is gone after the statement that it names.
    let mut owner = database.as_owner();
    for statement in [
        "DROP INDEX CONCURRENTLY junk_by_number",
        "ALTER TABLE junk RESET (autovacuum_enabled)",
        "VACUUM (ANALYZE, VERBOSE) junk",
    ] {
        execute(&mut owner, statement);
    }
    drop(owner);
    eventually("an end of the findings", || {
        let findings = report()["findings"].as_array().unwrap().clone();
        !findings.iter().any(|finding| finding["subject"].as_str().unwrap().starts_with("junk"))
    });
}

#[test]
fn the_storage_report_has_the_figures_of_the_server() {
    let database = TestDatabase::new();
    let mut owner = database.as_owner();
    for statement in [
        "CREATE TABLE heap (number integer PRIMARY KEY, filler text)",
        // Statistics of a table are for those who may read it.
        "GRANT SELECT ON heap TO PUBLIC",
        "CREATE INDEX heap_by_filler ON heap (filler, number)",
        "CREATE INDEX heap_by_length ON heap (length(filler), number)",
        // Half of the rows have a filler of 101 bytes, its length included.
        "INSERT INTO heap SELECT n, CASE WHEN n % 2 = 0 THEN repeat('x', 100) END FROM generate_series(1, 20000) n",
    ] {
        execute(&mut owner, statement);
    }
    // A session hands in its counters when it ends, at the latest: what it has inserted would count twice after a vacuum.
    drop(owner);
    let rows = "SELECT coalesce(sum(n_live_tup), 0)::bigint FROM pg_stat_user_tables WHERE relname = 'heap'";
    eventually("the rows", || database.count(rows) == 20_000);
    let mut owner = database.as_owner();
    for statement in [
        "VACUUM ANALYZE heap",
        "SET enable_seqscan = off",
        "SELECT count(*) FROM heap WHERE number = 1",
        "SELECT count(*) FROM heap WHERE number = 2",
        "SELECT count(*) FROM heap WHERE number = 3",
        "SELECT count(*) FROM heap WHERE number = 4",
        "SELECT count(*) FROM heap WHERE number = 5",
    ] {
        execute(&mut owner, statement);
    }
    drop(owner);
    let report = || -> Value { serde_json::from_str(&oncepay(&database, &["storage", "--json"]).1).unwrap() };
    let named = |report: &Value, kind: &str, name: &str| {
        let found = report[kind].as_array().unwrap().iter().find(|one| one["name"] == name);
        found.unwrap_or_else(|| panic!("{name} isn't in {report:#}")).clone()
    };
    let server = |query: &str| -> Value { serde_json::from_str(&database.text(query)).unwrap() };
    let scans = "SELECT json_build_object('index', idx_scan, 'sequential', seq_scan)::text FROM pg_stat_user_tables \
                 WHERE relname = 'heap'";
    eventually("the scans", || server(scans)["index"] == 5);
    assert_ne!(server(scans)["sequential"], 5, "it tells nothing apart");

    let age = || database.count("SELECT age(relfrozenxid) FROM pg_class WHERE relname = 'heap'");
    let youngest = age();
    let seen = report();
    let table = named(&seen, "tables", "heap");
    assert!((youngest..=age()).contains(&table["xid_age"].as_i64().unwrap()), "{table}");
    assert_eq!(
        (&table["index_scans"], &table["sequential_scans"]),
        (&json!(5), &server(scans)["sequential"])
    );
    let sizes = "SELECT json_build_array(pg_relation_size('heap'), pg_indexes_size('heap'), pg_total_relation_size('heap'))::text";
    assert_eq!(json!([table["row_bytes"], table["index_bytes"], table["total_bytes"]]), server(sizes));
    assert_eq!(
        (&table["rows"], &table["dead_rows"], &table["changed_rows"]),
        (&json!(20_000), &json!(0), &json!(0))
    );
    assert_eq!(table["needed_bytes"], 20_000 * (28 + 4) + 10_000 * 101);
    for time in ["vacuumed_at", "analyzed_at"] {
        let is_time =
            table[time].as_str().is_some_and(|text| chrono::DateTime::parse_from_rfc3339(text).is_ok());
        assert!(is_time, "{time} of {table}");
    }
    let key = named(&seen, "indexes", "heap_pkey");
    assert_eq!(json!([key["bytes"]]), server("SELECT json_build_array(pg_relation_size('heap_pkey'))::text"));
    assert_eq!((&key["entries"], &key["scans"], &key["table"]), (&json!(20_000), &json!(5), &json!("heap")));
    assert_eq!((&key["is_unique"], &key["is_valid"]), (&json!(true), &json!(true)));
    assert_eq!(key["needed_bytes"], 20_000 * (16 + 4) * 3 / 2);
    let other = named(&seen, "indexes", "heap_by_filler");
    assert_eq!(
        (&other["is_unique"], &other["needed_bytes"]),
        (&json!(false), &json!(20_000 * (16 + 101 + 4) * 3 / 2))
    );
    // The server has no statistics of the width of an expression.
    assert_eq!(named(&seen, "indexes", "heap_by_length")["needed_bytes"], json!(null));
    for (kind, size) in [("tables", "total_bytes"), ("indexes", "bytes")] {
        let sizes = seen[kind].as_array().unwrap().iter().map(|one| one[size].as_i64().unwrap());
        assert!(sizes.is_sorted_by(|larger, smaller| larger >= smaller), "{kind} aren't the largest first");
    }

    // What the last vacuum has counted outlasts the counters, which a crash of the server loses.
    execute(&mut database.as_superuser(), "SELECT pg_stat_reset_single_table_counters('heap'::regclass)");
    eventually("the loss", || named(&report(), "tables", "heap")["vacuumed_at"].is_null());
    assert_eq!(named(&report(), "tables", "heap")["rows"], 20_000);
}

#[test]
fn the_storage_report_names_what_holds_old_rows() {
    let database = TestDatabase::new();
    let slot = database.name().to_owned();
    let report = || -> Value { serde_json::from_str(&oncepay(&database, &["storage", "--json"]).1).unwrap() };
    let of_kind = |kind: &str| {
        let holders = report()["holders"].as_array().unwrap().clone();
        holders.into_iter().filter(|holder| holder["kind"] == kind).collect::<Vec<_>>()
    };
    assert_eq!(of_kind("session"), Vec::<Value>::new(), "its own is none");

    let mut holder = database.as_app();
    execute(&mut holder, "BEGIN");
    execute(&mut holder, "SELECT 1");
    let session = database.count("SELECT pid FROM pg_stat_activity WHERE state = 'idle in transaction' AND datname = current_database()");
    execute(&mut database.as_superuser(), &format!("SELECT pg_create_physical_replication_slot('{slot}')"));
    eventually("its age", || {
        of_kind("session").iter().any(|holder| holder["age_seconds"].as_i64() > Some(0))
    });
    let sessions = of_kind("session");
    assert_eq!(sessions.len(), 1, "{sessions:?}");
    assert!(
        sessions[0]["name"].as_str().unwrap().starts_with(&format!("session {session} (")),
        "{sessions:?}"
    );
    let holders = report()["holders"].as_array().unwrap().clone();
    let ages = holders.iter().map(|holder| holder["age_seconds"].as_i64().unwrap());
    assert!(ages.is_sorted_by(|older, younger| older >= younger), "{holders:?}");
    let findings = report()["findings"].as_array().unwrap().clone();
    let found = findings.iter().find(|finding| finding["subject"] == slot.as_str());
    let drop_it = format!("SELECT pg_drop_replication_slot('{slot}')");
    assert_eq!(found.map(|finding| &finding["statement"]), Some(&json!(drop_it)), "{findings:?}");
    execute(&mut database.as_superuser(), &drop_it);
    execute(&mut holder, "ROLLBACK");
}
