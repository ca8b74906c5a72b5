//! Whatever breaks, nothing is charged twice and no acknowledged answer is lost.
//!
//! Each test plays one kind of fault while clients work and retry, and then holds what they have seen against what
//! there is: their history, the database, the processor's books, the audit. A short version of each runs with the
//! suite. `ONCEPAY_FAULTS=all` makes them as long as they should be, `ONCEPAY_FAULTS_TABLE=file` writes down what came
//! of them, and `ONCEPAY_FAULT_SEED=number` lets the clients do the same as in an earlier run, in as far as time lets
//! them. `ONCEPAY_FAULTS_PROCESSOR=second` plays them with the processor of `tests/second_processor/` instead of ours.

mod acquirer;
mod bounds;
mod clients;
mod clock;
mod disk;
mod failover;
mod history;
mod provider;
mod proxy;
mod scene;
mod table;

use std::thread;
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::{Connection, PgConnection};
use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::support::database::binaries;
use crate::support::{cluster, eventually, execute, lock_charges, lock_rows};

use self::clients::Habits;
use self::proxy::Weather;
use self::scene::{Ending, Proxied, Scene, Setup, seed};

/// How much of a fault: `short` as a part of the suite, `full` where that's all there is to do.
fn amount<T>(short: T, full: T) -> T {
    if std::env::var("ONCEPAY_FAULTS").is_ok_and(|value| value == "all") { full } else { short }
}

/// Lets time go by: how long a fault lasts, or when the next one comes.
fn for_ms(ms: u64) {
    thread::sleep(Duration::from_millis(ms));
}

impl Setup {
    /// Clients that don't wait long before they try another instance.
    fn impatient(self) -> Self {
        Self { habits: Habits { request_timeout: Duration::from_secs(1), ..self.habits }, ..self }
    }
}

impl Scene {
    /// Lets a fault happen some times, with work in between.
    fn strike_often(self, times: usize, fault: impl Fn(&Self)) -> Self {
        let mut rng = StdRng::seed_from_u64(seed());
        for _ in 0..times {
            self.strike(&fault);
            self.wait_for_recovery();
            for_ms(rng.random_range(50..400));
        }
        self
    }

    /// Bad weather for a while.
    fn suffer(self, times: usize, weather: Weather, ms: u64) -> Self {
        self.strike_often(times, |scene| {
            // Not as long as somebody suffers from the last time.
            scene.wait_for_everybody();
            scene.proxy().set(weather);
            for_ms(ms);
            scene.proxy().set(Weather::Fair);
        })
    }

    /// Fails unless connections were reset: then there was nothing to suffer from.
    fn after_resets(self) -> Self {
        assert!(self.proxy().resets() > 0, "no connection was reset");
        self
    }

    /// Fails if the service took what happened to it for a bug of its own.
    fn without_internal_errors(self) -> Self {
        let history = self.recorder.history();
        let answers = history.attempts().filter_map(|attempt| attempt.answer.as_ref());
        let internal: Vec<_> = answers.filter(|answer| answer.status == 500).map(|it| &it.body).collect();
        assert!(internal.is_empty(), "{internal:?}");
        self
    }

    /// Ends the sessions of the service.
    fn terminate_sessions(&self) {
        let superuser = &mut self.database.as_superuser();
        execute(
            superuser,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
             WHERE datname = current_database() AND usename = 'oncepay_app'",
        );
    }

    /// Holds locks in another session.
    fn hold_locks(&self, lock: impl FnOnce(&mut PgConnection) -> diesel::QueryResult<()>, ms: u64) {
        let superuser = &mut self.database.as_superuser();
        superuser
            .transaction::<_, diesel::result::Error, _>(|conn| {
                lock(conn)?;
                for_ms(ms);
                Ok(())
            })
            .unwrap();
    }
}

#[test]
fn the_service_is_killed_again_and_again() {
    let setup = Setup::of("service: `kill -9` at a random moment");
    let scene = Scene::start(setup);
    table::add(scene.strike_often(amount(4, 50), |scene| scene.instances[0].kill()).finish());
}

#[test]
fn an_instance_is_stopped_past_its_leases() {
    let setup = Setup::of("service: one of two instances stopped for longer than a lease").impatient();
    let scene = Scene::start(Setup { instances: 2, ..setup });
    let scene = scene.strike_often(amount(1, 10), |scene| {
        scene.instances[0].signal(libc::SIGSTOP);
        for_ms(2_000);
        scene.instances[0].signal(libc::SIGCONT);
    });
    table::add(scene.finish());
}

#[test]
fn instances_are_restarted_one_after_another() {
    for instances in amount(&[2][..], &[2, 3]).iter().copied() {
        let fault = match instances {
            2 => "service: rolling restart of two instances",
            _ => "service: rolling restart of three instances",
        };
        let scene = Scene::start(Setup { instances, ..Setup::of(fault) });
        let scene = scene.strike_often(amount(1, 10), |scene| {
            for instance in &scene.instances {
                instance.restart();
            }
        });
        table::add(scene.finish());
    }
}

#[test]
fn answers_are_cut_off() {
    let setup = Setup::of("network to the service: connections reset amid answers");
    let scene = Scene::start(Setup { proxied: Proxied::Service, ..setup });
    // An answer has some 700 bytes.
    let weather = Weather::Resets { after_bytes: 3_000 };
    table::add(scene.suffer(amount(1, 3), weather, amount(2_000, 10_000)).after_resets().finish());
}

#[test]
fn an_instance_falls_silent() {
    let setup = Setup::of("network to one of two instances: silence for longer than a lease").impatient();
    let scene = Scene::start(Setup { instances: 2, proxied: Proxied::Service, ..setup });
    table::add(scene.suffer(amount(1, 10), Weather::BlackHole, 2_000).finish());
}

/// Needs Postgres' server binaries; the suite can do without where it's given a server or a container.
#[test]
fn postgres_is_restarted() {
    if cluster::cannot("a server of its own is one Postgres; `ops/drills/nodes.py` crashes nodes") {
        return;
    }
    if let Err(error) = binaries() {
        println!("skipped: {error}");
        return;
    }
    for (ending, fault) in [
        (Ending::Fast, "Postgres: restarted, `fast`"),
        (Ending::Immediate, "Postgres: restarted, `immediate`"),
    ] {
        let scene = Scene::start(Setup { own_server: true, ..Setup::of(fault) });
        let scene = scene.strike_often(amount(1, 10), |scene| {
            scene.wait_for_everybody();
            scene.restart_postgres(ending);
        });
        table::add(scene.finish());
    }
}

#[test]
fn sessions_are_terminated() {
    let scene = Scene::start(Setup::of("Postgres: all sessions terminated"));
    table::add(scene.strike_often(amount(6, 50), Scene::terminate_sessions).finish());
}

#[test]
fn postgres_refuses_connections() {
    let setup = Setup::of("network to Postgres: connections refused for 10 s");
    let scene = Scene::start(Setup { proxied: Proxied::Postgres, ..setup });
    let scene = scene.suffer(amount(1, 3), Weather::Refused, amount(2_000, 10_000));
    table::add(scene.after_resets().finish());
}

#[test]
fn postgres_is_far_away() {
    let setup = Setup::of("network to Postgres: 50 ± 50 ms more per answer");
    let scene = Scene::start(Setup { proxied: Proxied::Postgres, ..setup });
    let weather = Weather::Slow { base_ms: 50, jitter_ms: 50 };
    table::add(scene.suffer(amount(1, 3), weather, amount(2_000, 15_000)).finish());
}

#[test]
fn connections_to_postgres_are_reset() {
    let setup = Setup::of("network to Postgres: connections reset amid answers");
    let scene = Scene::start(Setup { proxied: Proxied::Postgres, ..setup });
    let weather = Weather::Resets { after_bytes: 10_000 };
    table::add(scene.suffer(amount(1, 3), weather, amount(2_000, 15_000)).after_resets().finish());
}

#[test]
fn postgres_falls_silent() {
    let setup = Setup::of("network to Postgres: silence for 15 s");
    let scene = Scene::start(Setup { proxied: Proxied::Postgres, ..setup });
    table::add(scene.suffer(amount(1, 3), Weather::BlackHole, amount(3_000, 15_000)).finish());
}

#[test]
fn there_are_too_few_connections() {
    let settings = vec![("ONCEPAY_POOL_SIZE", "2".to_owned()), ("ONCEPAY_POOL_TIMEOUT_MS", "300".to_owned())];
    let setup = Setup::of("database pool: 2 connections for 12 clients, both held up for a second");
    let scene = Scene::start(Setup { clients: 12, settings, ..setup });
    let scene = scene.strike_often(amount(2, 10), |scene| {
        scene.hold_locks(|conn| conn.batch_execute("LOCK TABLE charges IN SHARE ROW EXCLUSIVE MODE"), 1_000);
    });
    table::add(scene.finish());
}

#[test]
fn others_hold_locks() {
    let scene = Scene::start(Setup::of("locks: another session has the table or the rows for up to 3 s"));
    let scene = scene.strike_often(amount(1, 5), |scene| {
        let table =
            |conn: &mut PgConnection| conn.batch_execute("LOCK TABLE charges IN ACCESS EXCLUSIVE MODE");
        scene.hold_locks(table, amount(500, 1_000));
        scene.hold_locks(|conn| lock_rows(conn, "ledger_accounts", "true").map(drop), amount(500, 1_500));
        // Longer than the service waits for a lock.
        scene.hold_locks(lock_charges, amount(2_300, 3_000));
    });
    table::add(scene.finish());
}

/// Locks what the service locks, the other way round, where it's at work: so they wait for each other. The service
/// notices first.
fn lock_the_other_way_round(session: &mut PgConnection) -> diesel::QueryResult<()> {
    session.transaction(|session| {
        session.batch_execute("SET LOCAL deadlock_timeout = '10s'")?;
        if lock_rows(session, "charges", "in_flight IS NOT NULL OR amount_refund_pending > 0")? > 0 {
            // By now somebody wants to finish what it has begun with one of them; it looks for a deadlock after 100 ms.
            for_ms(30);
            lock_rows(session, "idempotency_keys", "state = 'in_progress'")?;
        }
        Ok(())
    })
}

#[test]
fn transactions_wait_for_each_other() {
    let scene = Scene::start(Setup::of("locks: deadlocks with another session"));
    let name = scene.database.name();
    let quickly = format!("ALTER DATABASE {name} SET deadlock_timeout = '100ms'");
    scene.database.everywhere(&quickly);
    scene.terminate_sessions();
    let deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()";
    let scene = scene.strike_often(1, |scene| {
        let session = &mut scene.database.as_superuser();
        let began = Instant::now();
        let is_enough = || began.elapsed() > Duration::from_millis(amount(2_000, 30_000));
        // The server counts with a delay.
        while !is_enough() || scene.database.count_everywhere(deadlocks) == 0 {
            assert!(began.elapsed() < Duration::from_secs(60), "there was no deadlock");
            for _ in 0..50 {
                // If it's chosen to give way, it has failed as well as it could.
                let _ = lock_the_other_way_round(session);
            }
        }
    });
    println!("{} deadlocks", scene.database.count_everywhere(deadlocks));
    table::add(scene.finish());
}

#[test]
fn transactions_collide() {
    let scene = Scene::start(Setup::of(
        "transactions: every third write of a charge or a key collides (40001, 40P01)",
    ));
    scene.database.everywhere("CREATE SEQUENCE collisions");
    scene.database.everywhere(
        "CREATE FUNCTION collide() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN \
             IF random() < 0.33 THEN \
                 PERFORM nextval('public.collisions'); \
                 IF random() < 0.5 THEN RAISE EXCEPTION 'deadlock detected' USING ERRCODE = '40P01'; END IF; \
                 RAISE EXCEPTION 'could not serialize access' USING ERRCODE = '40001'; \
             END IF; \
             RETURN NEW; END $$",
    );
    let scene = scene.strike_often(1, |scene| {
        let superuser = &mut scene.database.as_superuser();
        for table in ["charges", "idempotency_keys"] {
            execute(
                superuser,
                &format!("CREATE TRIGGER collide BEFORE INSERT OR UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION collide()"),
            );
        }
        for_ms(amount(2_000, 30_000));
        let collisions = "SELECT last_value FROM collisions";
        eventually("enough collisions", || scene.database.count_everywhere(collisions) > 20);
        for table in ["charges", "idempotency_keys"] {
            execute(superuser, &format!("DROP TRIGGER collide ON {table}"));
        }
    });
    table::add(scene.finish());
}

/// What all of this is worth: a service that breaks its promise doesn't get through.
#[test]
fn a_broken_claim_is_noticed() {
    let setup = Setup::of("a service that executes duplicates");
    let habits = Habits { hedged_percent: 100, ..setup.habits };
    let settings = vec![("ONCEPAY_FAULT", "break:claim".to_owned())];
    let scene = Scene::start(Setup { habits, settings, ..setup });
    scene.wait_for_answers(60);
    let (row, problems, _scene) = scene.reckon();
    assert!(row.duplicated > 0, "{row}");
    for problem in ["got two answers", "was executed twice", "belongs to no order", "and the processor did"] {
        assert!(problems.iter().any(|found| found.contains(problem)), "{problem} isn't among {problems:?}");
    }
}

/// And one that forgets an answer doesn't either.
#[test]
fn a_lost_answer_is_noticed() {
    let setup = Setup::of("a service that forgets a charge");
    // What no client was told isn't lost to anybody.
    let habits = Habits { forgotten_percent: 0, ..setup.habits };
    let scene = Scene::start(Setup { habits, ..setup });
    // Of a charge that nobody is changing: who had begun to would find half of it.
    let idle = "amount_refund_pending = 0 AND in_flight IS NULL";
    eventually("an end of a charge", || {
        let charge = scene.database.text(&format!(
            "SELECT k.resource_id FROM idempotency_keys k \
             JOIN charges c ON c.merchant_id = k.merchant_id AND c.id = k.resource_id \
             WHERE k.operation = 'charges.create' AND k.response_status = 201 AND {idle} \
             ORDER BY k.created_at LIMIT 1"
        ));
        scene.database.unguarded(&format!(
            "DELETE FROM charges WHERE id = '{charge}' AND {idle}; \
             DELETE FROM idempotency_keys WHERE resource_id = '{charge}' AND operation = 'charges.create' \
                 AND NOT EXISTS (SELECT FROM charges WHERE id = '{charge}')"
        ));
        scene.database.rows(&format!("charges WHERE id = '{charge}'")) == 0
    });
    let (row, problems, mut scene) = scene.reckon();
    assert_eq!(row.lost, 2, "an answer and a charge: {row}");
    let is_found = |problem: &str| problems.iter().any(|found| found.contains(problem));
    for problem in ["the answer to", "got two answers", "was acknowledged and is gone"] {
        assert!(is_found(problem), "{problem} isn't among {problems:?}");
    }
    // It has recognized the request, so that the card was charged once.
    assert!(!is_found("and the processor did"), "{problems:?}");
    scene.leave_the_books_as_they_are();
}
