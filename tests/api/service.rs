//! What surrounds the API: request ids, health, error pages, documentation.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use diesel::RunQueryDsl;
use diesel::dsl::sql;
use diesel::sql_types::Text;
use oncepay::base::metrics::Registry;
use oncepay::config::DevelopmentKeys;
use oncepay::error::Code;
use oncepay::storage::db::Db;
use oncepay::storage::metrics::Metrics;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::support::*;

#[test]
fn a_sane_request_id_is_kept_and_any_other_replaced() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let longest = "r".repeat(128);
    for sane in ["abc", "A.b_c-9", longest.as_str()] {
        let response = app.client.request("GET", "/healthz").header("X-Request-Id", sane).send();
        assert_eq!(response.header("X-Request-Id"), Some(sane));
    }
    let too_long = "r".repeat(129);
    for insane in ["", "a b", "a\tb", "<script>", "ä", too_long.as_str()] {
        let response =
            app.client.request("GET", "/healthz").header_bytes("X-Request-Id", insane.as_bytes()).send();
        assert!(response.header("X-Request-Id").unwrap().starts_with("req_"), "{insane}");
    }
    let repeated =
        app.client.request("GET", "/healthz").header("X-Request-Id", "a").header("X-Request-Id", "b");
    assert!(repeated.send().header("X-Request-Id").unwrap().starts_with("req_"));
    let problem = app.client.request("GET", "/v1/nothing").header("X-Request-Id", "mine").send();
    assert_eq!(problem.field("request_id"), "mine");
}

#[test]
fn unknown_paths_and_methods_are_problems() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    for path in ["/v1", "/v1/nothing", "/v1/charges/", "/v2/charges", "/v1/charges/x/y", "/problems/none"] {
        let problem = app.client.get(path).expect_problem(404, "route_not_found");
        assert_eq!(problem.field("instance"), path);
    }
    for (method, path, allow) in [
        ("DELETE", "/v1/charges", "GET, HEAD, POST"),
        ("DELETE", "/v1/%63harges", "GET, HEAD, POST"),
        ("HEAD", "/v1/charges/ch_1/capture", "POST"),
        ("PUT", "/v1/charges/ch_1", "GET, HEAD, PATCH"),
        ("POST", "/v1/balance", "GET, HEAD"),
    ] {
        let problem = app.client.request(method, path).send().expect(405);
        assert_eq!(problem.header("Allow"), Some(allow), "{method} {path}");
        assert_eq!(problem.body.is_empty(), method == "HEAD", "{method} {path}");
    }
}

#[test]
fn every_error_code_has_a_page() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let index = app.client.get("/problems").expect(200).text();
    for entry in Code::ALL.iter().map(|code| code.entry()) {
        let page = app.client.get(&entry.path()).expect(200);
        assert_eq!(page.header("Content-Type"), Some("text/html; charset=utf-8"));
        assert!(page.text().contains(entry.code) && page.text().contains(entry.title), "{}", entry.code);
        assert!(index.contains(&format!("href=\"{}\"", entry.path())), "{}", entry.code);
        app.client.get(&format!("/problems/{}", entry.code)).expect(200);
    }
}

#[test]
fn health_and_readiness_tell_apart_a_live_process_and_a_usable_one() {
    let mut database = TestDatabase::new();
    database.skip_audit();
    let app = App::start_with(&database, |config| config.pool_timeout_ms = 1_000);
    app.client.get("/healthz").expect(200);
    app.client.get("/readyz").expect(200);

    database.cut_off(true);
    app.client.get("/healthz").expect(200);
    app.client.get("/readyz").expect_problem(503, "database_unavailable");

    database.cut_off(false);
    eventually("its recovery", || app.client.get("/readyz").status == 200);
}

#[test]
fn connections_that_died_are_replaced_without_a_client_noticing() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    let path = format!("/v1/charges/{}", client.charge("first", &visa()).expect(201).field("id"));
    let name = database.name();
    let end_all = format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}' AND pid <> pg_backend_pid()"
    );
    for round in 0..3 {
        // As after a restart of the database: every pooled connection is dead.
        execute(&mut database.as_superuser(), &end_all);
        client.get(&path).expect(200);
        execute(&mut database.as_superuser(), &end_all);
        client.charge(&format!("k{round}"), &visa()).expect(201);
        execute(&mut database.as_superuser(), &end_all);
        let patch = serde_json::json!({"description": round.to_string()});
        client.send("PATCH", &path, &format!("p{round}"), &patch).expect(200);
    }
}

#[test]
fn a_read_that_a_lock_holds_up_for_long_is_told_to_come_again() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    let operator = app.client.with_key(&database.operator_key());
    let mut holder = database.as_owner();
    execute(&mut holder, "BEGIN");
    execute(&mut holder, "LOCK TABLE disputes, acquirer_events IN ACCESS EXCLUSIVE MODE");
    for answer in [client.get("/v1/disputes"), operator.get("/v1/operator/acquirer-events")] {
        let refused = answer.expect_problem(503, "transient_conflict");
        assert_eq!(refused.json()["retryable"], true);
        assert!(refused.header("Retry-After").is_some());
    }
    execute(&mut holder, "ROLLBACK");
    client.get("/v1/disputes").expect(200);
}

#[test]
fn a_database_that_became_read_only_is_an_outage_and_not_our_bug() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    let name = database.name();
    let read_only = |value: &str| {
        let conn = &mut database.as_superuser();
        execute(conn, "SET default_transaction_read_only = off");
        execute(conn, &format!("ALTER DATABASE {name} SET default_transaction_read_only = {value}"));
        let end_all = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()";
        execute(conn, end_all);
    };
    read_only("on");
    client.charge("k", &visa()).expect_problem(503, "database_unavailable");
    client.get("/readyz").expect_problem(503, "database_unavailable");
    client.get("/v1/balance").expect(200);
    read_only("off");
    client.get("/readyz").expect(200);
    client.charge("k", &visa()).expect(201);
    assert_eq!(app.runs(), 1);
}

#[test]
fn a_request_during_an_outage_does_nothing_and_its_retry_succeeds() {
    let database = TestDatabase::new();
    let app = App::start_with(&database, |config| config.pool_timeout_ms = 1_000);
    let client = app.client.as_merchant(&database.merchant());
    database.cut_off(true);
    let refused = client.charge("k", &visa()).expect_problem(503, "database_unavailable");
    assert!(refused.header("Retry-After").is_some());
    database.cut_off(false);
    eventually("its recovery", || client.charge("k", &visa()).status == 201);
    assert_eq!(app.runs(), 1);
    assert_eq!(database.rows("charges"), 1);
}

#[test]
fn the_documentation_is_served_with_nothing_from_outside() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let document = app.client.get("/openapi.json").expect(200).json();
    assert_eq!(document, serde_json::to_value(oncepay::server::document()).unwrap());

    app.client.get("/docs").expect(307);
    let page = app.client.get("/docs/").expect(200).text();
    let sources: Vec<_> = page
        .split(['"', '\''])
        .filter(|text| text.ends_with(".js") || text.ends_with(".css") || text.contains("://"))
        .collect();
    assert!(sources.len() >= 4, "{sources:?}");
    for source in sources {
        let path = source.strip_prefix("./").unwrap_or(source);
        assert!(!path.contains("//"), "{source} comes from outside");
        app.client.get(&format!("/docs/{path}")).expect(200);
    }
    let initializer = app.client.get("/docs/swagger-initializer.js").expect(200).text();
    assert!(initializer.contains("/openapi.json"), "{initializer}");
    // Each try has a key of its own, and nothing in the document would be sent by everybody instead.
    assert!(initializer.contains("freshKey()"), "{initializer}");
    let key = &document["components"]["parameters"]["IdempotencyKey"];
    assert_eq!(key["name"], "Idempotency-Key");
    for fixed in ["example", "examples"] {
        assert!(key.get(fixed).is_none() && key["schema"].get(fixed).is_none(), "{key}");
    }
    assert!(key["schema"].get("default").is_none(), "{key}");
}

#[test]
fn nobody_keeps_an_answer_of_the_api() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    let operator = app.client.with_key(&database.operator_key());
    let shop = json!({"name": "Shop", "fee_rate": "0", "fee_fixed": "0"});
    let hook = json!({"url": "https://shop.example/"});
    let endpoint = client.send("POST", "/v1/webhook-endpoints", "hook", &hook).expect(201).field("id");
    let rotation = format!("/v1/webhook-endpoints/{endpoint}/rotate-secret");
    let answers = [
        (&client, "/v1/api-keys", json!({"name": "key"})),
        (&client, "/v1/webhook-endpoints", hook),
        (&client, rotation.as_str(), json!({})),
        (&operator, "/v1/operator/merchants", shop),
    ]
    .into_iter()
    // The second is a replay.
    .flat_map(|(client, path, body)| [(); 2].map(|()| client.send("POST", path, path, &body)))
    .chain([
        client.get("/v1/charges"),
        client.get("/v1/charges/ch_1"),
        client.get("/%761/charges"),
        app.client.get("/v1/nothing"),
    ]);
    for answer in answers {
        assert_eq!(answer.header("Cache-Control"), Some("no-store"), "{} {}", answer.status, answer.text());
    }
    assert_eq!(app.client.get("/openapi.json").header("Cache-Control"), None);
}

#[test]
fn a_page_that_the_client_has_is_not_sent_again() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let files =
        ["/openapi.json", "/problems", "/problems/card-declined", "/docs/", "/docs/swagger-ui-bundle.js"];
    for path in files {
        let get = |accepted: &str, known: &str| {
            let request = app.client.request("GET", path).header("Accept-Encoding", accepted);
            request.header("If-None-Match", known).send()
        };
        let plain = get("identity", "\"none\"").expect(200);
        let tag = plain.header("ETag").unwrap();
        assert!(tag.starts_with('"'), "{path}: {tag} is weak");
        for known in [tag, "*", &format!("\"a\", W/{tag}")] {
            let unchanged = get("identity", known).expect(304);
            assert_eq!((unchanged.body.len(), unchanged.header("ETag")), (0, Some(tag)), "{path}");
            assert_eq!(unchanged.header("Vary"), Some("accept-encoding"));
        }
        let other = get("gzip", "\"none\"").expect(200);
        if other.header("Content-Encoding").is_some() {
            assert_ne!(other.header("ETag"), Some(tag), "other bytes");
            get("gzip", tag).expect(200);
            get("gzip", other.header("ETag").unwrap()).expect(304);
        }
    }
}

#[test]
fn commits_are_durable_whatever_the_server_has_as_default() {
    let database = TestDatabase::new();
    for (default, ours) in [("off", "on"), ("remote_apply", "remote_apply")] {
        let change = format!("ALTER DATABASE {} SET synchronous_commit = {default}", database.name());
        execute(&mut database.as_superuser(), &change);
        let db = Db::new(&database.app_url, 1, Duration::from_secs(5), Metrics::new(&Registry::new()));
        let setting = diesel::select(sql::<Text>("current_setting('synchronous_commit')"));
        let setting =
            db.run(move |conn| setting.get_result::<String>(conn).map_err(oncepay::error::Error::from));
        assert_eq!(actix_web::rt::System::new().block_on(setting).unwrap(), ours);
    }
}

#[test]
fn only_a_development_environment_shows_its_keys_and_only_by_the_machines_own_name() {
    let database = TestDatabase::new();
    let shown = |app: &App, path: &str| app.client.get(path).expect(200).text();
    let app = App::start(&database);
    assert_eq!(shown(&app, "/docs/authorization.json"), "{}");
    assert!(!shown(&app, "/").contains("curl"));

    let merchant = database.merchant();
    let app = App::start_with(&database, |config| {
        config.development_keys = Some(DevelopmentKeys {
            api_key: merchant.key.clone().into(),
            operator_key: "ok_".to_owned().into(),
        });
    });
    assert!(shown(&app, "/").contains(&format!("Authorization: Bearer {}", merchant.key)));
    assert!(shown(&app, "/docs/authorization.json").contains(&merchant.key));
    for path in ["/", "/docs/authorization.json"] {
        let foreign = app.client.request("GET", path).header("Host", "rebound.example");
        let asked = foreign.header("X-Forwarded-Host", "localhost").send().expect(200);
        assert!(!asked.text().contains(&merchant.key), "{path}");
    }
}

#[test]
fn operators_can_have_the_metrics_and_the_reference_on_a_port_of_their_own() {
    let database = TestDatabase::new();
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let app = App::start_with(&database, |config| config.admin_listen = Some(listen));
    let client = app.client.as_merchant(&database.merchant());
    client.charge("k", &visa()).expect(201);
    for path in ["/", "/metrics", "/docs", "/docs/", "/docs/swagger-ui-bundle.js"] {
        client.get(path).expect_problem(404, "route_not_found");
    }
    for path in ["/openapi.json", "/problems", "/problems/card-declined", "/healthz", "/readyz"] {
        client.get(path).expect(200);
    }
    let admin = app.admin().like(&client);
    for path in ["/", "/docs/", "/openapi.json", "/healthz", "/readyz"] {
        admin.get(path).expect(200);
    }
    let labels = [("method", "POST"), ("route", "/v1/charges"), ("status", "201")];
    assert_eq!(admin.metrics().value("oncepay_http_requests_total", &labels), 1.0);
    admin.get("/v1/nothing").expect_problem(404, "route_not_found");
    // By default there is one port for all.
    let app = App::start(&database);
    app.client.get("/metrics").expect(200);
    app.client.get("/docs/").expect(200);
}

#[test]
fn browsers_run_and_frame_nothing_on_our_pages() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let header = |response: &Response, name: &str| response.header(name).unwrap_or_default().to_owned();
    for path in [
        "/",
        "/docs/",
        "/docs/swagger-ui.css",
        "/problems",
        "/problems/card-declined",
        "/openapi.json",
        "/healthz",
        "/x",
    ] {
        let answer = app.client.get(path);
        let policy = header(&answer, "Content-Security-Policy");
        assert!(policy.starts_with("default-src 'none'; "), "{path}: {policy}");
        assert!(
            policy.contains("frame-ancestors 'none'") && policy.contains("base-uri 'none'"),
            "{path}: {policy}"
        );
        let scripts = policy.split("; ").find(|directive| directive.starts_with("script-src"));
        assert_eq!(scripts, path.starts_with("/docs/").then_some("script-src 'self'"), "{path}");
        for (name, value) in [
            ("X-Content-Type-Options", "nosniff"),
            ("X-Frame-Options", "DENY"),
            ("Referrer-Policy", "no-referrer"),
            ("Cross-Origin-Opener-Policy", "same-origin"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
        ] {
            assert_eq!(header(&answer, name), value, "{path}: {name}");
        }
    }
    let page = app.client.get("/problems/card-declined").expect(200);
    let style = page.text().split("<style>").nth(1).unwrap().split("</style>").next().unwrap().to_owned();
    let digest = BASE64_STANDARD.encode(Sha256::digest(style));
    let policy = header(&page, "Content-Security-Policy");
    assert!(policy.contains(&format!("style-src 'sha256-{digest}'")), "{policy}");
    // The reference consists of nothing that its policy forbids.
    let reference = app.client.get("/docs/").expect(200).text();
    let inline =
        reference.split("<script").skip(1).filter(|tag| !tag.split('>').next().unwrap().contains("src="));
    assert_eq!(inline.count(), 0, "{reference}");
    let merchant = app.client.as_merchant(&database.merchant());
    assert_eq!(header(&merchant.get("/v1/charges").expect(200), "X-Content-Type-Options"), "nosniff");
}
