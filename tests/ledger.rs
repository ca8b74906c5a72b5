//! The guards that the database itself puts around the ledger, tried as the role of the service.

use std::time::{Duration, Instant};

use diesel::{Connection, PgConnection, QueryResult, RunQueryDsl};
use oncepay::base::money::{Currency, Money};
use oncepay::ledger::{self, AccountKind, JournalEntry};

use crate::support::*;

fn usd() -> Currency {
    "USD".parse().unwrap()
}

fn money(amount: &str) -> Money {
    Money::parse(amount, usd()).unwrap()
}

/// A capture of `amount` without fee.
fn capture(source: &str, amount: &str) -> JournalEntry {
    JournalEntry::new(source)
        .debit(AccountKind::AcquirerClearing, money(amount))
        .credit(AccountKind::MerchantPayable, money(amount))
}

/// A refund of `amount`.
fn refund(source: &str, amount: &str) -> JournalEntry {
    JournalEntry::new(source)
        .debit(AccountKind::MerchantPayable, money(amount))
        .credit(AccountKind::AcquirerClearing, money(amount))
}

fn payable(conn: &mut PgConnection, merchant: &Merchant) -> String {
    (-ledger::balance(conn, merchant.id, AccountKind::MerchantPayable, usd()).unwrap())
        .normalize()
        .to_string()
}

/// Calls `ledger_post` as psql would.
fn post_sql(conn: &mut PgConnection, merchant: &Merchant, source: &str, lines: &str) -> QueryResult<usize> {
    diesel::sql_query(format!(
        "SELECT ledger_post('{}', gen_random_uuid(), '{source}', {lines})",
        merchant.id.0
    ))
    .execute(conn)
}

#[test]
fn the_services_role_cannot_break_the_ledger() {
    let database = TestDatabase::new();
    let merchant = database.merchant();
    let mut conn = database.as_app();
    ledger::post(&mut conn, merchant.id, &capture("a", "10.00")).unwrap();

    let id = merchant.id.0;
    let statements = [
        ("UPDATE postings SET amount = amount * 2", "permission denied"),
        ("DELETE FROM postings", "permission denied"),
        ("TRUNCATE postings", "permission denied"),
        ("UPDATE journal_entries SET source = 'x'", "permission denied"),
        ("DELETE FROM journal_entries", "permission denied"),
        ("TRUNCATE journal_entries CASCADE", "permission denied"),
        ("DELETE FROM ledger_accounts", "permission denied"),
        ("UPDATE ledger_checkpoints SET balance = 1", "permission denied"),
        ("ALTER TABLE postings DISABLE TRIGGER ALL", "must be owner"),
        ("DROP TABLE postings CASCADE", "must be owner"),
        ("CREATE TABLE mine (id int)", "permission denied"),
        ("UPDATE charges SET amount = 1", "permission denied"),
        ("DELETE FROM charges", "permission denied"),
        ("UPDATE merchant_pricing SET fee_rate = 0", "permission denied"),
        ("UPDATE api_keys SET key_sha256 = sha256('x')", "permission denied"),
        ("INSERT INTO operator_keys (name, key_sha256) VALUES ('x', sha256('x'))", "permission denied"),
    ]
    .map(|(statement, error)| (statement.to_owned(), error));
    let inserts = [
        (
            format!(
                "INSERT INTO postings (merchant_id, entry_id, line, account_id, currency, amount, created_at) SELECT merchant_id, entry_id, 9, account_id, currency, 5, created_at FROM postings WHERE merchant_id = '{id}' LIMIT 1"
            ),
            "permission denied",
        ),
        (
            format!(
                "INSERT INTO journal_entries (merchant_id, id, source) VALUES ('{id}', gen_random_uuid(), 'b')"
            ),
            "permission denied",
        ),
    ];
    for (statement, expected) in statements.into_iter().chain(inserts) {
        let error = diesel::sql_query(&statement).execute(&mut conn).expect_err(&statement).to_string();
        assert!(error.contains(expected), "{statement}: {error}");
    }

    let entries = [
        ("ARRAY['bank','merchant_payable'], ARRAY['USD','USD'], ARRAY[5.00,-4.99]", "must sum to zero"),
        ("ARRAY['bank','merchant_payable'], ARRAY['USD','EUR'], ARRAY[5.00,-5.00]", "must sum to zero"),
        (
            "ARRAY['bank','merchant_payable','fee_revenue'], ARRAY['USD','USD','USD'], ARRAY[0.0001,-0.00005,-0.00005]",
            "more decimals than its currency",
        ),
        ("ARRAY['bank'], ARRAY['USD'], ARRAY[0]", "at least two lines"),
        ("ARRAY[]::text[], ARRAY[]::text[], ARRAY[]::numeric[]", "at least two lines"),
        ("NULL, NULL, NULL", "at least two lines"),
        ("ARRAY['bank','bank'], ARRAY['USD'], ARRAY[1,-1]", "at least two lines"),
        ("ARRAY['bank','bank'], ARRAY['USD','USD'], ARRAY[1,NULL]", "at least two lines"),
        ("ARRAY['bank','bank'], ARRAY['USD','USD'], ARRAY[0,0]", "postings_amount"),
        ("ARRAY['bank','slush_fund'], ARRAY['USD','USD'], ARRAY[5,-5]", "ledger_accounts_kind"),
        (
            "ARRAY['bank','merchant_payable'], ARRAY['usd','usd'], ARRAY[5,-5]",
            "ledger_accounts_currency_code",
        ),
        ("ARRAY['merchant_payable','bank'], ARRAY['USD','USD'], ARRAY[10.01,-10.01]", "does not cover"),
    ];
    for (number, (lines, expected)) in entries.into_iter().enumerate() {
        let error =
            post_sql(&mut conn, &merchant, &format!("bad-{number}"), lines).expect_err(lines).to_string();
        assert!(error.contains(expected), "{lines}: {error}");
    }
    let again = ledger::post(&mut conn, merchant.id, &capture("a", "10.00"));
    assert!(again.is_err(), "a source is posted once");
    assert_eq!(database.rows("journal_entries"), 1);
    assert_eq!(payable(&mut conn, &merchant), "10");
}

#[test]
fn not_even_the_owner_changes_a_posting() {
    let database = TestDatabase::new();
    let merchant = database.merchant();
    ledger::post(&mut database.as_app(), merchant.id, &capture("a", "10.00")).unwrap();
    let mut owner = database.as_owner();
    for statement in [
        "UPDATE postings SET amount = amount * 2",
        "DELETE FROM postings",
        "TRUNCATE postings",
        "UPDATE journal_entries SET source = 'x'",
        "DELETE FROM journal_entries",
        "TRUNCATE journal_entries CASCADE",
        "DELETE FROM ledger_accounts",
        "TRUNCATE ledger_accounts CASCADE",
    ] {
        let error = diesel::sql_query(statement).execute(&mut owner).expect_err(statement).to_string();
        assert!(error.contains("append-only"), "{statement}: {error}");
    }
    let one_sided = "INSERT INTO postings (merchant_id, entry_id, line, account_id, currency, amount, created_at) \
                     SELECT merchant_id, entry_id, 9, account_id, currency, 5, created_at FROM postings LIMIT 1";
    let error = diesel::sql_query(one_sided).execute(&mut owner).expect_err(one_sided).to_string();
    assert!(error.contains("must sum to zero"), "{error}");
}

#[test]
fn merchant_payable_goes_below_zero_only_by_a_dispute() {
    let database = TestDatabase::new();
    let merchant = database.merchant();
    let mut conn = database.as_app();
    ledger::post(&mut conn, merchant.id, &capture("a", "10.00")).unwrap();
    ledger::post(&mut conn, merchant.id, &refund("b", "10.00")).unwrap();
    assert!(ledger::post(&mut conn, merchant.id, &refund("c", "0.01")).is_err());
    let dispute = JournalEntry::new("d")
        .debit(AccountKind::MerchantPayable, money("10.00"))
        .credit(AccountKind::DisputesHeld, money("10.00"));
    ledger::post(&mut conn, merchant.id, &dispute).unwrap();
    assert_eq!(payable(&mut conn, &merchant), "-10");
    let won = JournalEntry::new("e")
        .debit(AccountKind::DisputesHeld, money("10.00"))
        .credit(AccountKind::MerchantPayable, money("10.00"));
    ledger::post(&mut conn, merchant.id, &won).unwrap();
}

#[test]
fn credits_do_not_wait_and_debits_do() {
    let database = TestDatabase::new();
    let merchant = database.merchant();
    let [mut one, mut two] = [database.as_app(), database.as_app()];
    ledger::post(&mut one, merchant.id, &capture("a", "10.00")).unwrap();

    execute(&mut one, "BEGIN");
    ledger::post(&mut one, merchant.id, &capture("b", "1.00")).unwrap();
    // Nodes of a cluster hear of a setting only if it's a transaction's.
    let mut post = |entry: JournalEntry| {
        two.transaction(|conn| {
            execute(conn, "SET LOCAL lock_timeout = '200ms'");
            ledger::post(conn, merchant.id, &entry)
        })
    };
    post(capture("c", "1.00")).expect("credits don't wait for each other");
    post(refund("d", "1.00")).expect("nor a debit for a credit");
    // 11.00 are committed, 10.00 of them left; what isn't committed yet doesn't count.
    assert!(post(refund("e", "10.01")).is_err());
    execute(&mut one, "COMMIT");
    post(refund("e", "10.01")).expect("now it does");

    execute(&mut one, "BEGIN");
    ledger::post(&mut one, merchant.id, &refund("f", "0.50")).unwrap();
    let error = post(refund("g", "0.50")).expect_err("debits wait");
    assert_eq!(error.code().as_str(), "transient_conflict");
    post(capture("h", "1.00")).expect("credits don't wait for a debit");
    execute(&mut one, "COMMIT");
}

#[test]
fn simultaneous_debits_never_overdraw() {
    let database = TestDatabase::new();
    let merchant = database.merchant();
    ledger::post(&mut database.as_app(), merchant.id, &capture("a", "10.00")).unwrap();
    // Each takes a while to commit, so that all of them look at a balance that others are about to change.
    let threads: Vec<_> = (0..20)
        .map(|number| {
            let mut conn = database.as_app();
            let merchant = merchant.id;
            std::thread::spawn(move || {
                conn.transaction(|conn| {
                    ledger::post(conn, merchant, &refund(&format!("r{number}"), "1.50"))?;
                    execute(conn, "SELECT pg_sleep(0.02)");
                    Ok::<_, oncepay::error::Error>(())
                })
                .is_ok()
            })
        })
        .collect();
    let succeeded = threads.into_iter().map(|thread| thread.join().unwrap()).filter(|ok| *ok).count();
    assert_eq!(succeeded, 6);
    assert_eq!(payable(&mut database.as_app(), &merchant), "1");
}

/// What the checkpoints say of all `merchant_payable`.
fn checkpointed(database: &TestDatabase) -> i64 {
    database.count(
        "SELECT coalesce(sum(-balance), 0) FROM ledger_checkpoints c JOIN ledger_accounts a \
         ON (a.merchant_id, a.id) = (c.merchant_id, c.account_id) WHERE a.kind = 'merchant_payable'",
    )
}

/// Rolls up until the checkpoint is at `expected`, and fails if it gets further. How far it can go at a
/// time depends on the oldest transaction in the whole cluster, hence on tests that run meanwhile.
#[track_caller]
fn roll_up_to(database: &TestDatabase, conn: &mut PgConnection, merchant: &Merchant, expected: i64) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        ledger::roll_up(conn, merchant.id).unwrap();
        let checkpointed = checkpointed(database);
        assert!(checkpointed <= expected, "it went to {checkpointed}, beyond {expected}");
        if checkpointed == expected {
            return;
        }
        assert!(Instant::now() < deadline, "it stays at {checkpointed}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_roll_up_never_loses_a_posting_that_commits_late() {
    let database = TestDatabase::new();
    let merchant = database.merchant();
    let [mut late, mut conn] = [database.as_app(), database.as_app()];
    ledger::post(&mut conn, merchant.id, &capture("before", "1.00")).unwrap();

    execute(&mut late, "BEGIN");
    ledger::post(&mut late, merchant.id, &capture("late", "10.00")).unwrap();
    // Later in order, earlier to commit.
    ledger::post(&mut conn, merchant.id, &capture("after", "100.00")).unwrap();
    roll_up_to(&database, &mut conn, &merchant, 1);
    for _ in 0..3 {
        roll_up_to(&database, &mut conn, &merchant, 1);
    }
    assert_eq!(payable(&mut conn, &merchant), "101");

    execute(&mut late, "COMMIT");
    assert_eq!(payable(&mut conn, &merchant), "111");
    roll_up_to(&database, &mut conn, &merchant, 111);
    assert_eq!(payable(&mut conn, &merchant), "111");
    ledger::post(&mut conn, merchant.id, &refund("refund", "111.00")).expect("checkpoints count for debits");
    assert!(ledger::post(&mut conn, merchant.id, &refund("more", "0.01")).is_err());
}

#[test]
fn roll_ups_and_postings_at_once_keep_every_balance() {
    let database = TestDatabase::new();
    let merchant = database.merchant();
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let mut conn = database.as_app();
            let merchant = merchant.id;
            std::thread::spawn(move || {
                for number in 0..50 {
                    ledger::post(&mut conn, merchant, &capture(&format!("{writer}-{number}"), "1.00"))
                        .unwrap();
                }
            })
        })
        .collect();
    let mut conn = database.as_app();
    while writers.iter().any(|writer| !writer.is_finished()) {
        ledger::roll_up(&mut conn, merchant.id).unwrap();
    }
    for writer in writers {
        writer.join().unwrap();
    }
    roll_up_to(&database, &mut conn, &merchant, 200);
    assert_eq!(payable(&mut conn, &merchant), "200");
}

/// As after a crash of a coordinator that had written to other nodes only: it gives out the last numbers of transactions again.
#[test]
fn balances_survive_forgotten_numbers_of_transactions() {
    if !cluster::is_distributed() {
        return;
    }
    let database = TestDatabase::new();
    let merchant = database.merchant();
    let mut conn = database.as_app();
    ledger::post(&mut conn, merchant.id, &capture("before", "1.00")).unwrap();
    roll_up_to(&database, &mut conn, &merchant, 1);
    let ahead = database.count("SELECT pg_current_xact_id()::text::bigint + 20");
    database.unguarded(&format!("UPDATE ledger_checkpoints SET horizon = '{ahead}'"));
    ledger::post(&mut conn, merchant.id, &capture("after", "10.00")).unwrap();
    ledger::post(&mut conn, merchant.id, &refund("payout", "5.00")).unwrap();
    for _ in 0..30 {
        database.count("SELECT pg_current_xact_id()::text::bigint");
    }
    assert_eq!(payable(&mut conn, &merchant), "6");
    assert!(ledger::post(&mut conn, merchant.id, &refund("more", "6.01")).is_err());
    roll_up_to(&database, &mut conn, &merchant, 6);
}

/// As when the connection to a node breaks while it commits: for the coordinator, the transaction has ended.
#[test]
fn neither_a_roll_up_nor_the_feed_passes_what_a_node_has_not_ended() {
    if !cluster::is_distributed() {
        return;
    }
    let database = TestDatabase::new();
    let app = App::start(&database);
    let merchant = database.merchant();
    let client = app.client.as_merchant(&merchant);
    client.charge("k", &with_method("pm_card_visa")).expect(201);
    let events = || client.get("/v1/events?after=").expect(200).json()["data"].as_array().unwrap().len();
    let number = database.text("SELECT min(transaction_id::text::bigint) FROM postings");
    let mut nodes = database.on_nodes();
    for node in &mut nodes {
        execute(node, "BEGIN");
        execute(node, &format!("SELECT number_hold('{number}')"));
    }
    let mut conn = database.as_app();
    for _ in 0..3 {
        ledger::roll_up(&mut conn, merchant.id).unwrap();
    }
    let passed = format!("SELECT count(*) FROM ledger_checkpoints WHERE horizon > '{number}'");
    assert_eq!((database.count(&passed), events()), (0, 0));
    for node in &mut nodes {
        execute(node, "COMMIT");
    }
    eventually("the event", || events() == 1);
    eventually("the roll-up", || {
        ledger::roll_up(&mut database.as_app(), merchant.id).unwrap();
        database.count(&passed) == 3
    });
}

#[test]
fn balances_survive_a_restore_into_a_younger_cluster() {
    let database = TestDatabase::new();
    let merchant = database.merchant();
    let mut conn = database.as_app();
    ledger::post(&mut conn, merchant.id, &capture("a", "10.00")).unwrap();
    roll_up_to(&database, &mut conn, &merchant, 10);
    // A dump keeps the numbers of transactions that the new cluster hasn't reached yet.
    execute(&mut database.as_superuser(), "UPDATE ledger_checkpoints SET horizon = '9000000000'");
    ledger::post(&mut conn, merchant.id, &capture("b", "1.00")).unwrap();
    assert_eq!(payable(&mut conn, &merchant), "11", "the checkpoint is ignored");
    // Few postings as there are, it's due: later on it would hide them. In a distributed database, the posting has removed it.
    assert!(ledger::roll_up_due(&mut conn).unwrap() > 0 || cluster::is_distributed());
    assert_eq!(database.count("SELECT count(*) FROM ledger_checkpoints WHERE horizon = '9000000000'"), 0);
    roll_up_to(&database, &mut conn, &merchant, 11);
    assert_eq!(database.count("SELECT count(*) FROM ledger_checkpoints WHERE horizon = '9000000000'"), 0);
    assert_eq!(payable(&mut conn, &merchant), "11");
}

#[test]
fn a_dispute_in_one_currency_excuses_no_debit_in_another() {
    let database = TestDatabase::new();
    let merchant = database.merchant();
    let mut conn = database.as_app();
    for lines in [
        "ARRAY['merchant_payable','bank','disputes_held','disputes_held'], ARRAY['USD','USD','JPY','JPY'], ARRAY[100,-100,1,-1]",
        "ARRAY['merchant_payable','bank','disputes_held','disputes_held'], ARRAY['USD','USD','USD','USD'], ARRAY[100,-100,1,-1]",
        "ARRAY['merchant_payable','bank','disputes_held'], ARRAY['USD','USD','USD'], ARRAY[100,-99,-1]",
    ] {
        let error = post_sql(&mut conn, &merchant, "x", lines).expect_err(lines).to_string();
        assert!(error.contains("does not cover"), "{lines}: {error}");
    }
}

#[test]
fn a_hold_pays_only_for_its_own_account() {
    let database = TestDatabase::new();
    let merchant = database.merchant();
    let mut conn = database.as_app();
    let yen = "ARRAY['acquirer_clearing','merchant_payable'], ARRAY['JPY','JPY'], ARRAY[100,-100]";
    post_sql(&mut conn, &merchant, "capture", yen).unwrap();
    let hold = |conn: &mut PgConnection, source: &str, amount: u32| {
        let id = merchant.id.0;
        diesel::sql_query(format!("SELECT ledger_hold('{id}', '{source}', 'JPY', {amount})")).execute(conn)
    };
    hold(&mut conn, "s", 60).unwrap();
    assert!(hold(&mut conn, "t", 41).is_err(), "what is held can't be held again");
    let dinar = "ARRAY['merchant_payable','acquirer_clearing'], ARRAY['KWD','KWD'], ARRAY[60,-60]";
    assert!(post_sql(&mut conn, &merchant, "s", dinar).is_err());
    let debit = |amount: u32| {
        format!(
            "ARRAY['merchant_payable','acquirer_clearing'], ARRAY['JPY','JPY'], ARRAY[{amount},-{amount}]"
        )
    };
    assert!(post_sql(&mut conn, &merchant, "u", &debit(41)).is_err(), "nor spent by another entry");
    post_sql(&mut conn, &merchant, "s", &debit(60)).unwrap();
    post_sql(&mut conn, &merchant, "u", &debit(40)).unwrap();
    assert_eq!(database.rows("ledger_holds"), 0);
}

#[test]
fn what_the_guards_could_not_see_is_refused() {
    let database = TestDatabase::new();
    let merchant = database.merchant();
    let [mut stale, mut conn] = [database.as_app(), database.as_app()];
    ledger::post(&mut conn, merchant.id, &capture("a", "10.00")).unwrap();
    for level in ["REPEATABLE READ", "SERIALIZABLE"] {
        execute(&mut stale, &format!("BEGIN ISOLATION LEVEL {level}"));
        execute(&mut stale, "SELECT count(*) FROM postings");
        let error = ledger::post(&mut stale, merchant.id, &refund("b", "10.00")).expect_err(level);
        assert!(format!("{error:?}").contains("READ COMMITTED"), "{error:?}");
        execute(&mut stale, "ROLLBACK");
    }
}

#[test]
fn nothing_in_the_schema_public_gets_in_the_way_of_the_guards() {
    let database = TestDatabase::new();
    let merchant = database.merchant();
    // As on an old server, or one that was set up carelessly.
    execute(&mut database.as_superuser(), "GRANT CREATE ON SCHEMA public TO oncepay_app");
    let mut conn = database.as_app();
    execute(
        &mut conn,
        "CREATE FUNCTION public.never(numeric, integer) RETURNS boolean LANGUAGE sql AS 'SELECT false'",
    );
    execute(
        &mut conn,
        "CREATE OPERATOR public.<> (FUNCTION = public.never, LEFTARG = numeric, RIGHTARG = integer)",
    );
    let unbalanced = "ARRAY['bank','fee_revenue'], ARRAY['USD','USD'], ARRAY[1,-100]";
    let error = post_sql(&mut conn, &merchant, "x", unbalanced).expect_err(unbalanced).to_string();
    assert!(error.contains("must sum to zero"), "{error}");
    let error = oncepay::storage::migrations::migrate(&mut database.as_owner()).expect_err("migrate tells");
    assert!(error.contains("REVOKE CREATE ON SCHEMA public"), "{error}");
}
