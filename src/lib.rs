//! Oncepay: a payments API that charges once, however often the client retries.
//!
//! These docs are the map of the code. The README says how to run it.
//!
//! # The problem
//!
//! A client sends a charge and gets no answer. Was the card charged? It can't know, so it sends the
//! request again. Networks time out, load balancers retry, processes die between two writes, providers
//! deliver a webhook twice; without help, each of these charges a customer twice or makes the books
//! drift. Oncepay's answer: every request that changes something carries an *idempotency key*, and the
//! service executes it at most once per key and answers every retry with the first answer's bytes.
//!
//! # A charge, from the socket to the commit
//!
//! ```text
//! POST /v1/charges
//!   request::context               gives it a request id, will log one line
//!   IdempotentRequest<CreateCharge>
//!     PresentedKey                 whose API key is it?
//!     body, media type, key, JSON  refused here: nothing has been stored
//!     CreateCharge::read           every field at once
//!   Engine::run_external
//!     store::find_all              is the API key valid? seen before? then replay or refuse, and that's all
//!     store::claim_all             one committed insert; the primary key decides who executes
//!     CreateCharge::perform        calls the processor, no transaction open, key derived from ours
//!     CreateCharge::conclude       says what follows: charge row, journal entry, event, answer
//!     store::complete_all          writes all of it in one statement, if the claim is still ours (the fence)
//! ```
//!
//! Each of the three statements is shared by the charges that come while others are on their way to the database
//! (see [`batch`]): the more there is to do, the less a charge costs.
//!
//! Where finishing has to read and lock more, it's a transaction instead: `store::lock` (`SELECT … FOR UPDATE` on the
//! key, the same fence), the operation's statements, the answer.
//!
//! What if we die …
//! * … before the claim commits: nothing has happened, the retry is a first request.
//! * … after it: the key is in progress. When the lease has run out, the client's retry or, without one, the
//!   [recovery worker](idempotency::recovery) takes over: same charge id, same processor keys, so whatever the
//!   processor has done is found rather than repeated.
//! * … inside the finishing transaction: it's rolled back, and the same goes on as above.
//! * … after it: the answer is stored, and the retry gets it.
//!
//! Captures, cancellations, refunds and payouts also *prepare*, in the transaction of the claim: they check what
//! can be refused for good, and reserve what they need (a hold in the ledger, the charge itself), so that two of
//! them can't both be let through to the processor where there is room for one.
//!
//! A `PATCH` of a charge changes only our own database, so claim, work and answer are one transaction
//! ([`LocalOperation`](idempotency::LocalOperation)), and a crash leaves nothing to clean up.
//!
//! # Where things are
//!
//! | module | what it does | what it knows nothing of |
//! |---|---|---|
//! | [`idempotency`] | runs a request at most once per key | charges, money |
//! | [`ledger`] | posts balanced entries, computes balances | charges, HTTP, keys |
//! | [`charges`], [`refunds`], [`payouts`], [`disputes`], [`settlements`] | a resource each: states, types, handlers, domain | how keys work |
//! | [`learned`] | what comes of the acquirer's word | |
//! | [`ledger_api`], [`balance`], [`lists`], [`journal`] | the ledger and its lists as a merchant reads them | |
//! | [`keys_api`], [`policies_api`], [`shell`] | what has become of a key, what is stuck, by which rules: over HTTP and from a shell | how it's decided |
//! | [`metrics`] | counts and measures | |
//! | [`audit`] | checks that everything that must agree does | |
//! | [`processor`] | who moves the money: a client of the acquirer, or the sandbox that plays it | our database |
//! | [`reconcile`] | holds the acquirer's operations against ours | how they came about |
//! | [`acquirer`] | plays the bank behind a network, as a server of its own | our database, our engine |
//! | [`events`] | records state changes with the changes | who reads them |
//! | [`events_api`] | events and their deliveries as a merchant reads them | |
//! | [`webhooks`] | tells merchants of events, and takes the acquirer's | how a charge works |
//! | [`auth`], [`api_keys`], [`merchants`], [`operator`], [`vault`] | whose request it is, what they pay, derived secrets | |
//! | [`error`] | every error code, its status, its page | HTTP frameworks, up to one `match` |
//! | [`fields`], [`money`], [`ids`] | parse at the door into types that can't be wrong | |
//! | [`server`], [`openapi`], [`request`], [`problems`], [`health`] | the HTTP around it | |
//! | [`db`], [`deadline`], [`sql`], [`batch`], [`schema`] | the bounded pool, the time a request has, prepared statements, many calls in one statement, tables | the domain |
//! | [`listen`], [`trigger`], [`api_client`] | `oncepay listen` and `oncepay trigger`: clients, for developers | our database |
//! | [`dev`], [`config`], [`faults`] | `oncepay dev` and `oncepay seed`, settings, crash points for tests | |
//!
//! # Invariants
//!
//! * **Mutating handlers get their body only through
//!   [`IdempotentRequest`](idempotency::IdempotentRequest).** A test asks every mutating operation of the
//!   OpenAPI document for its key.
//! * **No network call inside a transaction**, and transactions open in one place, the engine. Domain
//!   functions take a `&mut PgConnection` and never begin, commit, spawn, sleep or call out.
//! * **No connection is held while waiting** for anything but the database.
//! * **The database refuses to break the ledger**, also to the service's own role: it can't write the
//!   tables, only call `ledger_post`. Entries balance, are posted once per source and never change.
//! * **Rows are locked in one order**: idempotency key, charge or payout, ledger accounts by id. Money coming in
//!   locks no account at all. A parked event of the acquirer is locked by whoever tries it before what it's about; who comes
//!   to it the other way round skips it.
//! * **A request is stored with its claim**, and reading it ([`Operation::read`](idempotency::Operation::read)) depends
//!   on nothing else but settings, so that it can be finished without its client.
//! * **Times that matter come from the database's clock**, so that instances needn't agree. But whether a message of the
//!   acquirer is too old is told by the instance's own: that's said before the database is asked.
//! * **Every key of a merchant's table starts with `merchant_id`**, so that the database can be
//!   distributed by it. A test reads the catalog.
//! * **Floats never touch an amount.**
//!
//! Deliberately absent: an object-relational layer over the tables, a repository trait to mock, a message
//! broker, and any cache that could show a merchant something stale.
//!
//! # Adding an operation
//!
//! One file with its types, its handler and its [`Operation`](idempotency::Operation), one migration, one
//! test file, two lines in `server.rs`: its handler, and its entry in [`server::operations`], by which the recovery
//! worker, the policies and the OpenAPI document know it. The engine, the error answers, the OpenAPI headers and the tests
//! of the idempotency rules apply by themselves.

pub mod audit;
pub mod base;
pub mod commands;
pub mod config;
pub mod dev;
pub mod error;
pub mod events;
pub mod host;
pub mod idempotency;
pub mod idempotency_api;
pub mod inbound;
pub mod ledger;
pub mod payments;
pub mod processor;
pub mod server;
pub mod simulator;
pub mod storage;
pub mod tenants;
pub mod web;
pub mod webhooks;
