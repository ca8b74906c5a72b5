//! Arguments that try to get past the guards of the ledger, and past the other functions that run with their owner's rights,
//! by their form: as the role of the service.

use std::collections::BTreeMap;

use diesel::sql_types::{Integer, Text};
use diesel::{PgConnection, QueryResult, QueryableByName, RunQueryDsl};
use oncepay::base::money::Currency;

use crate::support::*;

/// Runs a statement that must fail, and returns the error's text.
#[track_caller]
fn refused(conn: &mut PgConnection, statement: &str) -> String {
    diesel::sql_query(statement).execute(conn).expect_err(statement).to_string()
}

/// Posts an entry, after `ledger_post_all` was found to judge it in the same way.
#[track_caller]
fn post(conn: &mut PgConnection, merchant: &Merchant, source: &str, lines: &str) -> QueryResult<usize> {
    let id = merchant.id.0;
    execute(conn, "BEGIN");
    let together = post_all(conn, merchant, &[(source, lines)]);
    execute(conn, "ROLLBACK");
    let alone =
        diesel::sql_query(format!("SELECT ledger_post('{id}', gen_random_uuid(), '{source}', {lines})"))
            .execute(conn);
    // It's given lines and no arrays, so that it can't be given arrays of another form.
    if !lines.contains("},{") && !lines.contains("{{") {
        assert_eq!(
            together.map_err(|error| error.to_string()),
            alone.as_ref().copied().map_err(ToString::to_string)
        );
    }
    alone
}

/// Posts entries of a merchant by `ledger_post_all`: their sources and lines.
fn post_all(conn: &mut PgConnection, merchant: &Merchant, entries: &[(&str, &str)]) -> QueryResult<usize> {
    let id = merchant.id.0;
    let sources: Vec<_> = entries.iter().map(|(source, _)| format!("'{source}'")).collect();
    let lines: Vec<_> = (1..)
        .zip(entries)
        .map(|(number, (_, lines))| {
            format!("SELECT {number}, * FROM unnest({}) WITH ORDINALITY", typed(lines))
        })
        .collect();
    diesel::sql_query(format!(
        "SELECT ledger_post_all(array_fill('{id}'::uuid, ARRAY[{}]), ARRAY[{}], \
             array_agg(entry), array_agg(line), array_agg(kind), array_agg(currency), array_agg(amount)) \
         FROM ({}) AS line (entry, kind, currency, amount, line)",
        entries.len(),
        sources.join(", "),
        lines.join(" UNION ALL "),
    ))
    .execute(conn)
}

/// The arguments of [`lines`] with their types.
fn typed(lines: &str) -> String {
    let columns: Vec<_> = lines.split(", ").zip(["text", "text", "numeric"]).collect();
    columns.iter().map(|(column, of)| format!("{column}::{of}[]")).collect::<Vec<_>>().join(", ")
}

/// The arguments of an entry with lines of (kind, currency, amount).
fn lines(lines: &[(&str, &str, &str)]) -> String {
    let column = |of: fn(&(&str, &str, &str)) -> String| lines.iter().map(of).collect::<Vec<_>>().join(",");
    format!(
        "'{{{}}}', '{{{}}}', '{{{}}}'",
        column(|(kind, ..)| (*kind).to_owned()),
        column(|(_, currency, _)| (*currency).to_owned()),
        column(|(.., amount)| (*amount).to_owned())
    )
}

/// A capture of `amount`.
fn capture(currency: &str, amount: &str) -> String {
    let credit = format!("-{amount}");
    lines(&[("acquirer_clearing", currency, amount), ("merchant_payable", currency, &credit)])
}

fn payable(database: &TestDatabase, currency: &str) -> String {
    database.text(&format!(
        "SELECT coalesce(sum(-p.amount), 0)::text FROM postings p JOIN ledger_accounts a \
         ON (a.merchant_id, a.id) = (p.merchant_id, p.account_id) WHERE a.kind = 'merchant_payable' AND a.currency = '{currency}'"
    ))
}

#[test]
fn the_database_knows_the_scale_of_each_currency_as_the_code_does() {
    #[derive(QueryableByName)]
    struct Known {
        #[diesel(sql_type = Text)]
        code: String,
        #[diesel(sql_type = Integer)]
        scale: i32,
    }
    let database = TestDatabase::new();
    let letters = || (b'A'..=b'Z').map(char::from);
    let codes =
        letters().flat_map(|a| letters().flat_map(move |b| letters().map(move |c| format!("{a}{b}{c}"))));
    let in_code: BTreeMap<String, i32> = codes
        .filter_map(|code| {
            let scale = code.parse::<Currency>().ok()?.scale();
            Some((code, scale.try_into().unwrap()))
        })
        .collect();
    let in_database: BTreeMap<_, _> = diesel::sql_query(
        "SELECT code, currency_scale(code) AS scale \
         FROM (SELECT chr(a) || chr(b) || chr(c) AS code FROM generate_series(65, 90) a, generate_series(65, 90) b, \
             generate_series(65, 90) c) AS codes WHERE currency_scale(code) IS NOT NULL",
    )
    .load::<Known>(&mut database.as_app())
    .unwrap()
    .into_iter()
    .map(|known| (known.code, known.scale))
    .collect();
    assert_eq!(in_database, in_code);
    assert!(in_code.len() > 150, "{}", in_code.len());
    assert_eq!(
        database.count(
            "SELECT count(currency_scale(c)) FROM unnest('{usd,US,USDX,\"D A\",\"AED AFN\",\" \",\"\",NULL}'::text[]) AS c"
        ),
        0
    );
}

#[test]
fn an_amount_has_no_more_decimals_than_its_currency() {
    let database = TestDatabase::new();
    let merchant = database.merchant();
    let mut conn = database.as_app();
    for (currency, amount) in [
        ("JPY", "0.5"),
        ("USD", "0.005"),
        ("USD", "100.0001"),
        ("BHD", "0.0005"),
        ("CLF", "0.00005"),
        ("HRK", "0.001"),
    ] {
        let entry = capture(currency, amount);
        let error = post(&mut conn, &merchant, "fine", &entry).expect_err(&entry).to_string();
        assert!(error.contains("more decimals than its currency"), "{currency} {amount}: {error}");
    }
    // One line of many.
    let entry = lines(&[
        ("bank", "USD", "1"),
        ("bank", "JPY", "0.5"),
        ("fee_revenue", "USD", "-1"),
        ("fee_revenue", "JPY", "-0.5"),
    ]);
    assert!(
        post(&mut conn, &merchant, "fine", &entry).expect_err(&entry).to_string().contains("more decimals")
    );
    assert_eq!(database.rows("journal_entries"), 0);

    for (currency, amount) in [
        ("JPY", "1"),
        ("JPY", "1.0000"),
        ("USD", "0.01"),
        ("USD", "1.500000"),
        ("BHD", "0.001"),
        ("CLF", "0.0001"),
        ("HRK", "0.01"),
    ] {
        post(&mut conn, &merchant, &format!("{currency} {amount}"), &capture(currency, amount))
            .expect("it fits");
    }
    let id = merchant.id.0;
    for (currency, amount) in
        [("JPY", "0.5"), ("USD", "0.001"), ("USD", "0.00005"), ("BHD", "0.0001"), ("CLF", "0.00005")]
    {
        let error = refused(&mut conn, &format!("SELECT ledger_hold('{id}', 's', '{currency}', {amount})"));
        assert!(error.contains("as many decimals"), "{currency} {amount}: {error}");
    }
    assert_eq!(database.rows("ledger_holds"), 0);
}

/// Half of the last decimal that is stored rounds up, so that what sums to zero overdraws when it's stored.
#[test]
fn rounding_overdraws_nobody() {
    let database = TestDatabase::new();
    let merchant = database.merchant();
    let mut conn = database.as_app();
    for currency in ["USD", "CLF", "ZZZ"] {
        let mut all = Vec::new();
        for _ in 0..20 {
            all.extend([("merchant_payable", currency, "0.00005"), ("bank", currency, "-0.00005")]);
        }
        for _ in 0..10 {
            all.extend([("merchant_payable", currency, "-0.0001"), ("bank", currency, "0.0001")]);
        }
        let error = post(&mut conn, &merchant, "rounded", &lines(&all)).expect_err(currency).to_string();
        assert!(error.contains("more decimals"), "{error}");
        assert_eq!(payable(&database, currency), "0");
    }
}

#[test]
fn an_entry_has_numbers_in_lines_and_a_currency_that_is_known() {
    let database = TestDatabase::new();
    let merchant = database.merchant();
    let mut conn = database.as_app();
    let id = merchant.id.0;
    let two = "'{bank,fee_revenue}', '{USD,USD}'";
    for (entry, expected) in [
        (format!("{two}, '{{NaN,NaN}}'"), "must sum to zero"),
        (format!("{two}, '{{NaN,1}}'"), "must sum to zero"),
        (format!("{two}, '{{Infinity,-Infinity}}'"), "must sum to zero"),
        (format!("{two}, '{{10000000000000000,-10000000000000000}}'"), "overflow"),
        ("'{{bank},{fee_revenue}}', '{{USD},{USD}}', '{{1},{-1}}'".to_owned(), "at least two lines"),
        (
            "'{{bank,bank},{fee_revenue,fee_revenue}}', '{USD,USD,USD,USD}', '{1,1,-1,-1}'".to_owned(),
            "at least two lines",
        ),
        (format!("{two}, '{{{{1,-1}}}}'"), "at least two lines"),
        (capture("ZZZ", "1"), "currency that is known"),
        (capture("XXX", "1"), "currency that is known"),
        (capture("usd", "1"), "ledger_accounts_currency_code"),
    ] {
        let error = post(&mut conn, &merchant, "malformed", &entry).expect_err(&entry).to_string();
        assert!(error.contains(expected), "{entry}: {error}");
    }
    for arguments in [
        format!("NULL, gen_random_uuid(), 's', {}", capture("USD", "1")),
        format!("'{id}', NULL, 's', {}", capture("USD", "1")),
        format!("'{id}', gen_random_uuid(), NULL, {}", capture("USD", "1")),
    ] {
        refused(&mut conn, &format!("SELECT ledger_post({arguments})"));
    }
    assert_eq!((database.rows("journal_entries"), database.rows("ledger_accounts")), (0, 0));
}

#[test]
fn an_entry_is_of_a_merchant_that_exists_and_has_a_source() {
    let database = TestDatabase::new();
    let merchant = database.merchant();
    let mut conn = database.as_app();
    let nobody = uuid::Uuid::from_u128(1);
    let refusal = refused(
        &mut conn,
        &format!("SELECT ledger_post('{nobody}', gen_random_uuid(), 's', {})", capture("USD", "5.00")),
    );
    assert!(refusal.contains("a merchant that exists"), "{refusal}");
    let id = merchant.id.0;
    for source in ["''", "' '", "E'\\t\\n'", "NULL"] {
        let entry = format!("'{id}', gen_random_uuid(), {source}, {}", capture("USD", "5.00"));
        for function in [format!("ledger_post({entry})"), format!("ledger_correct({entry}, NULL, 'r', 'r')")]
        {
            let refusal = refused(&mut conn, &format!("SELECT {function}"));
            assert!(refusal.contains("needs a source"), "{function}: {refusal}");
        }
    }
    assert_eq!(
        database.rows("ledger_accounts") + database.rows("journal_entries"),
        0,
        "nothing is left of them"
    );
    post(&mut conn, &merchant, "s", &capture("USD", "5.00")).unwrap();
    for source in ["''", "' '", "NULL"] {
        let refusal = refused(&mut conn, &format!("SELECT ledger_hold('{id}', {source}, 'USD', 1)"));
        assert!(refusal.contains("needs a source"), "{source}: {refusal}");
    }
}

#[test]
fn of_entries_that_are_posted_together_each_is_posted_or_none() {
    let database = TestDatabase::new();
    let merchant = database.merchant();
    let mut conn = database.as_app();
    let id = merchant.id.0;
    let sale = capture("USD", "10.00");
    let refund = |amount: &str| {
        lines(&[("merchant_payable", "USD", amount), ("acquirer_clearing", "USD", &format!("-{amount}"))])
    };
    // The first entry makes the accounts: by then, plain ones are posted together.
    for round in ["new", "plain"] {
        let source = |number: u32| format!("{round} {number}");
        // Of a line alone, the table only sees that it isn't balanced.
        let alone = if round == "new" || cluster::is_distributed() {
            "at least two lines"
        } else {
            "must sum to zero"
        };
        for (bad, expected) in [
            (
                lines(&[("acquirer_clearing", "USD", "1"), ("merchant_payable", "USD", "-2")]),
                "must sum to zero",
            ),
            (capture("USD", "0.001"), "more decimals"),
            (lines(&[("acquirer_clearing", "USD", "1")]), alone),
            (
                lines(&[("acquirer_clearing", "USD", "0"), ("merchant_payable", "USD", "0")]),
                "postings_amount",
            ),
            (refund("1000.00"), "does not cover"),
        ] {
            let error = post_all(&mut conn, &merchant, &[("good", &sale), ("bad", &bad)])
                .expect_err(&bad)
                .to_string();
            assert!(error.contains(expected), "{round}, {bad}: {error}");
        }
        for (entries, expected) in [
            ([("twice", &*sale), ("twice", &*sale)], "journal_entries_source_once"),
            ([("good", &*sale), (" ", &*sale)], "needs a source"),
        ] {
            let error = post_all(&mut conn, &merchant, &entries).unwrap_err().to_string();
            assert!(error.contains(expected), "{round}: {error}");
        }
        let arrays = "ARRAY[1, 1], '{bank,fee_revenue}', '{USD,USD}', '{1,-1}'";
        for (sources, entries, expected) in [
            ("ARRAY['a', 'without lines']", "ARRAY[1, 1]", "at least two lines"),
            ("ARRAY['a', 'b']", "ARRAY[1, 3]", "needs an entry"),
            ("ARRAY['a', 'b']", "ARRAY[1, NULL]", "needs an entry"),
        ] {
            let merchants = format!("ARRAY['{id}', '{id}']::uuid[]");
            let error = refused(
                &mut conn,
                &format!("SELECT ledger_post_all({merchants}, {sources}, {entries}, {arrays})"),
            );
            assert!(error.contains(expected), "{round}: {error}");
        }
        let before = database.rows("journal_entries");
        let entries = [(&*source(1), &*sale), (&*source(2), &*refund("4.00")), (&*source(3), &*sale)];
        post_all(&mut conn, &merchant, &entries).expect("an entry can take what one before it gives");
        assert_eq!(database.rows("journal_entries"), before + 3);
        let entries = [(&*source(4), &*sale), (&*source(5), &*sale)];
        post_all(&mut conn, &merchant, &entries).unwrap();
        assert_eq!(database.rows("journal_entries"), before + 5);
    }
    // Each of 8 sales and 2 refunds.
    assert_eq!(payable(&database, "USD"), "72.0000");
    assert_eq!(database.text("SELECT count(*)::text FROM postings"), "20");
    let order = "SELECT string_agg(line || ' ' || amount, ', ' ORDER BY line) FROM postings \
         JOIN journal_entries e ON (e.merchant_id, e.id) = (postings.merchant_id, entry_id) WHERE source = 'plain 5'";
    assert_eq!(database.text(order), "1 10.0000, 2 -10.0000");
}

#[test]
fn a_posting_waits_for_nobody_who_holds_its_merchant() {
    let database = TestDatabase::new();
    let merchant = database.merchant();
    let (mut holder, mut conn) = (database.as_owner(), database.as_app());
    execute(&mut holder, "BEGIN");
    execute(
        &mut holder,
        &format!("SELECT FROM merchants WHERE merchant_id = '{}' FOR UPDATE", merchant.id.0),
    );
    execute(&mut conn, "SET lock_timeout = '1s'");
    post(&mut conn, &merchant, "s", &capture("USD", "5.00")).unwrap();
}

#[test]
fn a_hold_is_a_positive_number_that_is_there() {
    let database = TestDatabase::new();
    let merchant = database.merchant();
    let mut conn = database.as_app();
    let id = merchant.id.0;
    post(&mut conn, &merchant, "capture", &capture("USD", "10.00")).unwrap();
    for amount in ["0", "-1", "'-Infinity'", "'Infinity'", "'NaN'", "NULL", "10.01", "0.001", "0.00001"] {
        refused(&mut conn, &format!("SELECT ledger_hold('{id}', 's', 'USD', {amount})"));
    }
    for arguments in [
        "NULL, 's', 'USD', 1".to_owned(),
        format!("'{id}', NULL, 'USD', 1"),
        format!("'{id}', 's', NULL, 1"),
        format!("'{id}', 's', 'EUR', 1"),
        format!("'{id}', 's', 'ZZZ', 1"),
    ] {
        refused(&mut conn, &format!("SELECT ledger_hold({arguments})"));
    }
    for arguments in ["NULL, NULL".to_owned(), format!("'{id}', NULL"), format!("'{id}', gen_random_uuid()")]
    {
        refused(&mut conn, &format!("SELECT ledger_roll_up({arguments})"));
    }
    assert_eq!((database.rows("ledger_holds"), database.rows("ledger_checkpoints")), (0, 0));
}

/// As after a release that knew the currency.
#[test]
fn what_is_there_in_an_unknown_currency_can_be_finished() {
    let database = TestDatabase::new();
    let merchant = database.merchant();
    let id = merchant.id.0;
    execute(
        &mut database.as_owner(),
        &format!(
            "INSERT INTO ledger_accounts (merchant_id, kind, currency) VALUES ('{id}', 'merchant_payable', 'ZZZ')"
        ),
    );
    let mut conn = database.as_app();
    post(&mut conn, &merchant, "capture", &capture("ZZZ", "1.0001")).expect("the other account is made");
    execute(&mut conn, &format!("SELECT ledger_hold('{id}', 'refund', 'ZZZ', 0.5)"));
    let refund = lines(&[("merchant_payable", "ZZZ", "0.5"), ("acquirer_clearing", "ZZZ", "-0.5")]);
    post(&mut conn, &merchant, "refund", &refund).unwrap();
    assert_eq!(payable(&database, "ZZZ"), "0.5001");
    let other = database.merchant();
    assert!(post(&mut conn, &other, "capture", &capture("ZZZ", "1")).is_err(), "another merchant has none");
}

#[test]
fn temporary_objects_get_in_nobodys_way() {
    let database = TestDatabase::new();
    let merchant = database.merchant();
    let mut conn = database.as_app();
    let id = merchant.id.0;
    for statement in [
        "CREATE TEMP TABLE ledger_accounts (LIKE public.ledger_accounts)",
        "CREATE TEMP TABLE journal_entries (LIKE public.journal_entries)",
        "CREATE TEMP TABLE postings (LIKE public.postings)",
        "CREATE TEMP TABLE ledger_holds (LIKE public.ledger_holds)",
        "CREATE TEMP TABLE ledger_checkpoints (LIKE public.ledger_checkpoints)",
        "CREATE TEMP TABLE merchants (LIKE public.merchants)",
        "CREATE TEMP TABLE events (LIKE public.events)",
        "CREATE TEMP TABLE event_retention (LIKE public.event_retention)",
        "CREATE TEMP TABLE webhook_deliveries (LIKE public.webhook_deliveries)",
        "CREATE TEMP TABLE acquirer_events (LIKE public.acquirer_events)",
        "CREATE FUNCTION pg_temp.round(numeric, integer) RETURNS numeric LANGUAGE sql AS 'SELECT $1'",
        "CREATE FUNCTION pg_temp.currency_scale(text) RETURNS integer LANGUAGE sql AS 'SELECT 4'",
        "CREATE FUNCTION pg_temp.ledger_spendable(uuid, uuid) RETURNS numeric LANGUAGE sql AS 'SELECT 1000.0'",
        "CREATE FUNCTION pg_temp.uuid_v7_lowest(timestamptz) RETURNS uuid LANGUAGE sql AS \
             $$SELECT 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid$$",
        "SET search_path = pg_temp, public",
    ] {
        execute(&mut conn, statement);
    }
    let post = |conn: &mut PgConnection, source: &str, lines: &str| {
        diesel::sql_query(format!(
            "SELECT public.ledger_post('{id}', gen_random_uuid(), '{source}', {lines})"
        ))
        .execute(conn)
    };
    post(&mut conn, "capture", &capture("USD", "10.00")).unwrap();
    assert!(post(&mut conn, "fine", &capture("JPY", "0.5")).is_err());
    let refund = lines(&[("merchant_payable", "USD", "10.01"), ("acquirer_clearing", "USD", "-10.01")]);
    assert!(post(&mut conn, "refund", &refund).is_err());
    refused(&mut conn, &format!("SELECT public.ledger_hold('{id}', 'refund', 'USD', 10.01)"));
    execute(
        &mut conn,
        &format!(
            "INSERT INTO public.events (merchant_id, id, type, object_id, data) \
             VALUES ('{id}', public.uuid_v7(), 'x', public.uuid_v7(), '{{}}')"
        ),
    );
    execute(&mut conn, "SELECT public.events_prune('1 day', '1 day', 100, NULL)");
    execute(&mut conn, "SELECT public.acquirer_events_prune('1 day', 100)");
    assert_eq!(
        (database.rows("postings"), database.rows("events"), database.rows("ledger_holds")),
        (2, 1, 0)
    );
    // Its object isn't there, which the audit would tell.
    execute(&mut database.as_superuser(), "DELETE FROM events");
}

/// Compared as intervals these are a day or more; as times back from now they aren't.
#[test]
fn no_interval_and_no_time_zone_makes_young_rows_old() {
    let database = TestDatabase::new();
    let mut conn = database.as_app();
    let young = [
        "'-12 months 361 days'",
        "'-1200 months 36001 days'",
        "interval '-120 months' + interval '3601 days'",
        "'23 hours'",
        "'0'",
        "'-1 day'",
        "NULL",
    ];
    for zone in ["UTC", "America/New_York", "Pacific/Apia"] {
        execute(&mut conn, &format!("SET TIME ZONE '{zone}'"));
        for keep in young {
            for statement in [
                format!("SELECT events_prune({keep}, '90 days', 100, NULL)"),
                format!("SELECT events_prune('90 days', {keep}, 100, NULL)"),
                format!("SELECT acquirer_events_prune({keep}, 100)"),
            ] {
                let error = refused(&mut conn, &statement);
                assert!(error.contains("a day at least"), "{statement}: {error}");
            }
        }
        for keep in ["'1 day'", "'24 hours'", "'1 month'", "'100 years'"] {
            execute(&mut conn, &format!("SELECT events_prune({keep}, {keep}, 100, NULL)"));
            execute(&mut conn, &format!("SELECT acquirer_events_prune({keep}, 100)"));
        }
    }
    for batch in ["NULL", "0", "-1"] {
        for statement in [
            format!("SELECT events_prune('1 day', '1 day', {batch}, NULL)"),
            format!("SELECT acquirer_events_prune('1 day', {batch})"),
        ] {
            let error = refused(&mut conn, &statement);
            assert!(error.contains("at least one row"), "{statement}: {error}");
        }
    }
}

#[test]
fn the_history_of_policies_cannot_be_forged() {
    let database = TestDatabase::new();
    let mut conn = database.as_app();
    execute(
        &mut conn,
        "CREATE TEMP TABLE mine (operation text, updated_at timestamptz, updated_by text, ttl_seconds integer)",
    );
    let error = refused(
        &mut conn,
        "CREATE TRIGGER forged AFTER UPDATE ON mine FOR EACH ROW EXECUTE FUNCTION public.idempotency_policies_changed()",
    );
    assert!(error.contains("permission denied for function"), "{error}");
}

#[test]
fn functions_that_run_as_their_owner_find_names_in_the_catalog_only_and_are_granted_by_name() {
    let database = TestDatabase::new();
    let owners = "FROM pg_proc p WHERE pronamespace = 'public'::regnamespace AND prosecdef";
    assert!(database.count(&format!("SELECT count(*) {owners}")) >= 6);
    let careless = database.text(&format!(
        "SELECT coalesce(string_agg(proname, ', '), '') {owners} AND (proconfig IS NULL \
             OR NOT proconfig @> ARRAY['search_path=pg_catalog, pg_temp'] OR proacl IS NULL \
             OR EXISTS (SELECT FROM aclexplode(proacl) WHERE grantee = 0))"
    ));
    assert_eq!(careless, "");
}
