//! Oncepay: a payments API that charges once, however often the client retries.
//!
//! These docs are the map of the code. The README says how to run it, and `docs/README.md` lists all chapters.
//!
//! # The problem
//!
//! A client sends a charge and gets no answer. Was the card charged? The client can't know, so it sends the
//! request again. Networks time out, load balancers retry, processes die between two writes, providers
//! deliver a webhook twice. Without help, each of these charges a customer twice or makes the books drift.
//! Oncepay's answer: every request that changes something carries an *idempotency key*. The service executes
//! it at most once per key and answers every retry with the first answer's bytes.
//!
//! # A charge, from the socket to the commit
//!
//! ```text
//! POST /v1/charges
//!   web::connection                 passes on what is HTTP, a request at a time
//!   server::middleware              gives the request an id and a trace, will log one line
//!   IdempotentRequest<CreateCharge>
//!     host::callers                 finds the merchant by the API key
//!     Engine::enter                 within the merchant's limits? room in the queue? otherwise 429 or 503
//!     body, media type, key, JSON   refused here: nothing has been stored
//!     CreateCharge::read            reads every field, reports all errors at once
//!   Engine::execute_batched
//!     store::find_all               valid API key? key seen before? then replay or refuse, and that's all
//!     store::claim_all              one committed insert; the primary key decides who executes
//!     CreateCharge::call_processor  no transaction open; the processor's key derives from ours
//!     CreateCharge::effects         charge row, journal entry, event and answer, as data
//!     store::complete_all           writes all of it in one statement, if the claim is still ours (the fence)
//! ```
//!
//! Concurrent charges share each of the three statements (see [`storage::batch`]): the higher the load, the
//! less a charge costs. One that is alone begins with its claim, and looks only if that fails.
//!
//! A completion that has to read and lock more is a transaction instead: `store::lock` (`SELECT … FOR UPDATE`
//! on the key, the same fence), the operation's statements, the answer. Concurrent ones share transactions, each
//! behind a savepoint.
//!
//! If the service dies …
//! * … before the claim commits: nothing has happened, the retry is a first request.
//! * … after it: the key is in progress. When the lease has expired, the client's retry or, without one, the
//!   [recovery worker](idempotency::workers::recovery) takes over with the same charge id and the same
//!   processor keys. So it finds what the processor has done, and doesn't repeat it.
//! * … inside the completing transaction: it's rolled back, and the request goes on as above.
//! * … after it: the answer is stored, and the retry gets it.
//!
//! Captures, cancellations, refunds and payouts also *reserve*, in the transaction of the claim. They check
//! what can be refused for good, and set aside what they need (a hold in the ledger, the charge itself). So
//! of two that compete for the same thing, only one gets through to the processor.
//!
//! A `PATCH` of a charge changes only our own database, so claim, work and answer are one transaction
//! ([`LocalOperation`](idempotency::LocalOperation)), and a crash leaves nothing to clean up.
//!
//! # Layout
//!
//! From the ground up: each folder imports only those above it in this table. A test reads the sources and
//! fails on any other import, and on a circle of files.
//!
//! | folder | what it holds | what it knows nothing of |
//! |---|---|---|
//! | [`base`] | ids, money, time, JSON, signatures, derived secrets, traces, the log, the metrics registry, crash points for tests | requests |
//! | [`error`] | why a request fails; `failure` is the half that engine and storage know, `problem` the only file with HTTP | frameworks, but for that file |
//! | [`storage`] | the bounded pool, its sessions and who may wait for it, whether a database fits, deadlines, prepared statements, many calls in one statement, the tables | the domain |
//! | [`web`] | what every endpoint shares: connections, authentication, fields, lists, error documentation | the processor |
//! | [`processor`] | who moves the money: what a provider does, its books, its messages; an adapter per provider | our database |
//! | [`events`] | state changes, recorded with the changes | who reads them |
//! | [`idempotency`] | the engine: runs a request at most once per key | merchants' keys, charges, money, the processor |
//! | [`host`] | what the engine is handed of this service: callers, errors, what operations get at | any operation |
//! | [`ledger`] | balanced entries, balances, checkpoints, and the ledger as a merchant reads it | charges |
//! | [`payments`] | charges, refunds, payouts, disputes, settlements, the balance: states, types, rules, handlers | how keys work |
//! | [`tenants`] | merchants and their API keys | payments |
//! | [`webhooks`] | events to merchants: endpoints, outbox, delivery, retention | how a charge works |
//! | [`inbound`] | events and books of the processor, applied and compared | how they came about |
//! | [`audit`], [`idempotency_api`] | checks over all tables; the engine's tables for merchants and operators | how it's decided |
//! | [`config`] | the settings of a service | |
//! | [`console`] | the pages for people: charges, keys, balances, what needs a person | how a request gets to a page |
//! | [`server`] | each route and operation once, OpenAPI, middleware, health, problem pages | |
//! | [`simulator`] | a payment processor with faults, as a server of its own | our tables, our engine, our processor client |
//! | [`dev`] | `oncepay dev`: everything with one command, with a Postgres of its own | |
//! | [`commands`] | a file per command | |
//!
//! # Invariants
//!
//! * **Mutating handlers get their body only through
//!   [`IdempotentRequest`](idempotency::IdempotentRequest).** A test asks every mutating operation of the
//!   OpenAPI document for its key.
//! * **The engine can be lifted out**: a test holds the short list of its allowed imports, and an example
//!   guards a toy domain with it.
//! * **No network call inside a transaction.** Domain functions take a `&mut PgConnection` and never begin,
//!   commit, spawn, sleep or call out. Transactions begin in the engine, in workers' loops, and in reads that
//!   need one snapshot; a test lists the files.
//! * **No connection is held while waiting** for anything but the database.
//! * **Merchants take turns** wherever requests wait for the database (`storage::turns`), and what has been claimed
//!   goes first and needs no place.
//! * **The database refuses to break the ledger**, also to the service's own role: it can't write the
//!   tables, only call `ledger_post`. Entries balance, are posted once per source and never change.
//! * **Rows are locked in one order**: idempotency key, charge or payout, ledger accounts by id. Incoming
//!   money locks no account at all. A parked event of the processor is locked before its object; code that
//!   reaches the event from the object skips a locked event.
//! * **A request is stored with its claim**, and reading it
//!   ([`Operation::read`](idempotency::Operation::read)) depends on nothing else but settings, so that it can
//!   be finished without its client.
//! * **Times that matter come from the database's clock**, so that instances needn't agree. The one exception
//!   is the age of a message from the processor: the instance's clock decides on it before the database is
//!   asked.
//! * **Every key of a merchant's table starts with `merchant_id`**, so that the database can be
//!   distributed by it. A test reads the catalog.
//! * **Floats never touch an amount.**
//!
//! Deliberately absent: an object-relational layer over the tables, a repository trait to mock, a message
//! broker, and any cache that could show a merchant something stale.
//!
//! # Adding an operation
//!
//! CONTRIBUTING.md lists the files, and a check applies that list to a copy. An operation describes itself in
//! its [`Descriptor`](idempotency::Descriptor), and [`server::operations`] lists it. From there the recovery
//! worker, the policies, the key status, the audit and the OpenAPI document know it.

pub mod audit;
pub mod base;
pub mod commands;
pub mod config;
pub mod console;
pub mod dev;
pub mod error;
pub mod events;
mod host;
pub mod idempotency;
mod idempotency_api;
pub mod inbound;
pub mod ledger;
pub mod payments;
pub mod processor;
pub mod server;
pub mod simulator;
pub mod storage;
mod tenants;
pub mod web;
pub mod webhooks;
