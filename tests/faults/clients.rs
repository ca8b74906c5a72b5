//! Clients as they should be: each keeps sending the same request under the same key until it gets a final answer.
//! And as they are: some send it twice at the same time, or once more long after they've got their answer, or never come
//! back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::{Client, Merchant, Response, with_method};

use super::history::{Answer, Attempt, Entry, Read, Recorder, Shown};
use super::provider::Cards;

/// The first pause between two attempts is up to this long, each further one up to twice as long as the one before.
const PAUSE_FIRST: Duration = Duration::from_millis(25);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// What is left of a charge of 12.50 after its fee, in cents.
const NET_CENTS: i64 = 1_184;

/// How the clients behave.
#[derive(Clone, Copy, Debug)]
pub struct Habits {
    /// Wait for one answer.
    pub request_timeout: Duration,
    /// How long an operation is tried before its client gives up, which is a failure of the service.
    pub patience: Duration,
    /// Longest pause between two operations.
    pub pause_max: Duration,
    /// Of a hundred operations, those that are sent twice at once.
    pub hedged_percent: u32,
    /// Of a hundred operations, those that are sent once and, without an answer, left to the service.
    pub forgotten_percent: u32,
    /// What they pay with.
    pub cards: Cards,
}

/// What an operation does, as far as the books are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Charge,
    Authorization,
    Declined,
    Capture,
    Cancellation,
    Refund,
    Payout,
}

impl Kind {
    /// Status of the answer.
    fn status(self) -> u16 {
        match self {
            Self::Charge | Self::Authorization | Self::Refund | Self::Payout => 201,
            Self::Capture | Self::Cancellation => 200,
            Self::Declined => 402,
        }
    }

    /// What it makes the processor do.
    pub fn processor_steps(self) -> &'static [&'static str] {
        match self {
            Self::Charge => &["authorize", "capture"],
            Self::Authorization => &["authorize"],
            Self::Declined => &[],
            Self::Capture => &["capture"],
            Self::Cancellation => &["void"],
            Self::Refund => &["refund"],
            Self::Payout => &["payout"],
        }
    }

    /// Id of what the answer says was made, if making is what it's about.
    fn made(self, body: &Value) -> Option<String> {
        let member = match self {
            Self::Capture | Self::Cancellation => return None,
            Self::Declined => "charge_id",
            Self::Charge | Self::Authorization | Self::Refund | Self::Payout => "id",
        };
        body[member].as_str().map(str::to_owned)
    }
}

/// An intended operation, with its key.
#[derive(Clone, Debug)]
pub struct Order {
    pub kind: Kind,
    pub key: String,
    path: String,
    body: Value,
}

impl Order {
    fn digest(&self) -> String {
        hex::encode(&Sha256::digest(format!("POST {} {}", self.path, self.body))[..8])
    }
}

/// An order and its final answer, unless the client has given up.
#[derive(Clone, Debug)]
pub struct Done {
    pub order: Order,
    /// Whether its client never meant to send it again.
    pub is_forgotten: bool,
    pub answer: Option<Answer>,
}

/// A client with a merchant of its own.
pub struct Customer {
    number: u32,
    /// One per address of the service.
    clients: Vec<Client>,
    /// The address that has worked last.
    at: usize,
    habits: Habits,
    rng: StdRng,
    recorder: Arc<Recorder>,
    abandon: Arc<AtomicBool>,
    pub done: Vec<Done>,
    /// Final answers that nothing explains.
    pub surprises: Vec<String>,
    authorized: Vec<String>,
    captured: Vec<String>,
    balance_cents: i64,
}

impl Customer {
    pub fn new(
        number: u32,
        merchant: &Merchant,
        addresses: &[String],
        habits: Habits,
        seed: u64,
        recorder: Arc<Recorder>,
    ) -> Self {
        let client =
            |address: &String| Client::patient(address, habits.request_timeout).as_merchant(merchant);
        Self {
            number,
            clients: addresses.iter().map(client).collect(),
            at: number as usize % addresses.len(),
            habits,
            rng: StdRng::seed_from_u64(seed.wrapping_add(number.into())),
            recorder,
            abandon: Arc::default(),
            done: Vec::new(),
            surprises: Vec::new(),
            authorized: Vec::new(),
            captured: Vec::new(),
            balance_cents: 0,
        }
    }

    /// One operation, or one look at what there is.
    fn step(&mut self) {
        let dice = self.rng.random_range(0..100);
        match dice {
            0..10 => self.charge(Kind::Authorization),
            10..20 if !self.authorized.is_empty() => self.decide(),
            20..28 if !self.captured.is_empty() => self.refund(),
            28..34 if self.balance_cents >= 100 => self.pay_out(),
            34..37 => self.charge(Kind::Declined),
            37..44 if !self.done.is_empty() => self.repeat(),
            44..52 if !self.captured.is_empty() => self.look(),
            _ => self.charge(Kind::Charge),
        }
        let pause = self.rng.random_range(Duration::ZERO..=self.habits.pause_max);
        thread::sleep(pause);
    }

    fn charge(&mut self, kind: Kind) {
        let method = match self.rng.random_range(0..100) {
            _ if kind == Kind::Declined => self.habits.cards.declining,
            // The processor fails, or its answer gets lost, with the first attempt.
            0..3 => self.habits.cards.failing_once,
            3..6 => self.habits.cards.losing_an_answer,
            _ => self.habits.cards.approving,
        };
        let mut body = with_method(method);
        body["capture"] = json!(kind != Kind::Authorization);
        let Some(id) = self.order(kind, "/v1/charges".to_owned(), body) else { return };
        match kind {
            Kind::Authorization => self.authorized.push(id),
            Kind::Charge => self.note_captured(id),
            _ => {}
        }
    }

    fn note_captured(&mut self, id: String) {
        self.captured.push(id);
        self.balance_cents += NET_CENTS;
    }

    /// Captures or cancels an authorized charge.
    fn decide(&mut self) {
        let place = self.rng.random_range(0..self.authorized.len());
        let id = self.authorized.swap_remove(place);
        if self.rng.random_bool(0.7) {
            let path = format!("/v1/charges/{id}/capture");
            if self.order(Kind::Capture, path, json!({"amount": "12.50"})).is_some() {
                self.note_captured(id);
            }
        } else {
            self.order(Kind::Cancellation, format!("/v1/charges/{id}/cancel"), json!({}));
        }
    }

    fn refund(&mut self) {
        // Each once, so that no refund can exceed its charge.
        let place = self.rng.random_range(0..self.captured.len());
        let id = self.captured.swap_remove(place);
        self.balance_cents -= 100;
        self.order(Kind::Refund, "/v1/refunds".to_owned(), json!({"charge_id": id, "amount": "1.00"}));
    }

    fn pay_out(&mut self) {
        self.balance_cents -= 100;
        let body = json!({"amount": "1.00", "currency": "USD", "destination": "ba_main"});
        self.order(Kind::Payout, "/v1/payouts".to_owned(), body);
    }

    /// Sends again what is answered already.
    fn repeat(&mut self) {
        let answered: Vec<_> = self.done.iter().filter(|done| done.answer.is_some()).collect();
        let Some(order) = answered.choose(&mut self.rng).map(|done| done.order.clone()) else { return };
        self.settle(&order);
    }

    fn look(&mut self) {
        let resource = self.captured.choose(&mut self.rng).expect("there is one").clone();
        let sent_at = self.recorder.now();
        let response = self.clients[self.at].request("GET", &format!("/v1/charges/{resource}")).try_send();
        let at = self.recorder.now();
        let answer = response.ok().map(|it| Shown { at, status: it.status, body: it.text() });
        if answer.as_ref().is_none_or(|answer| answer.status >= 500) {
            self.turn_elsewhere();
        }
        self.recorder.note(Entry::Read(Read { client: self.number, resource, sent_at, answer }));
    }

    /// Carries out a new order. Returns the id of what it's about, if it has succeeded.
    fn order(&mut self, kind: Kind, path: String, body: Value) -> Option<String> {
        // From the generator, so that a seed gives the same keys.
        let key = format!("{}-{:016x}", self.number, self.rng.random::<u64>());
        let order = Order { kind, key, path, body };
        let is_forgotten = self.rng.random_range(0..100) < self.habits.forgotten_percent;
        let answer = if is_forgotten { self.send_once(&order) } else { self.settle(&order) };
        let id = answer.as_ref().and_then(|answer| {
            let body: Value = serde_json::from_str(&answer.body).ok()?;
            body["id"].as_str().map(str::to_owned)
        });
        self.done.push(Done { order, is_forgotten, answer });
        id
    }

    /// Sends an order until it has a final answer. `None`: patience has run out.
    pub fn settle(&mut self, order: &Order) -> Option<Answer> {
        let started = Instant::now();
        let mut pause_max = PAUSE_FIRST;
        let mut is_hedged = self.rng.random_range(0..100) < self.habits.hedged_percent;
        loop {
            let answer = if std::mem::take(&mut is_hedged) {
                self.send_twice(order)
            } else {
                self.send(self.at, order)
            };
            match answer {
                Some(answer) if answer.is_final() => {
                    self.expect(order, &answer);
                    return Some(answer);
                }
                // It's where it should be, and takes its time.
                Some(answer) if answer.status == 409 => {}
                _ => self.turn_elsewhere(),
            }
            if started.elapsed() > self.habits.patience || self.abandon.load(Ordering::Relaxed) {
                return None;
            }
            thread::sleep(self.rng.random_range(Duration::ZERO..=pause_max));
            pause_max = (2 * pause_max).min(PAUSE_MAX);
        }
    }

    /// Sends an order, and never mind what comes of it.
    fn send_once(&mut self, order: &Order) -> Option<Answer> {
        let answer = self.send(self.at, order).filter(Answer::is_final);
        match &answer {
            Some(answer) => self.expect(order, answer),
            None => self.turn_elsewhere(),
        }
        answer
    }

    /// Two attempts at the same time, at two addresses if there are. A final answer wins.
    fn send_twice(&self, order: &Order) -> Option<Answer> {
        let (one, other) = thread::scope(|scope| {
            let other = scope.spawn(|| self.send((self.at + 1) % self.clients.len(), order));
            (self.send(self.at, order), other.join().unwrap())
        });
        if one.as_ref().is_some_and(Answer::is_final) { one } else { other }
    }

    fn send(&self, address: usize, order: &Order) -> Option<Answer> {
        let sent_at = self.recorder.now();
        let request = self.clients[address].request("POST", &order.path);
        let response = request.idempotency_key(&order.key).json(&order.body).try_send();
        let answer = response.ok().map(|response| answer(order.kind, self.recorder.now(), &response));
        self.recorder.note(Entry::Attempt(Attempt {
            client: self.number,
            key: order.key.clone(),
            request: order.digest(),
            sent_at,
            answer: answer.clone(),
        }));
        answer
    }

    fn turn_elsewhere(&mut self) {
        self.at = (self.at + 1) % self.clients.len();
    }

    fn expect(&mut self, order: &Order, answer: &Answer) {
        if answer.status != order.kind.status() {
            let surprise = format!("{:?} {} got {}: {}", order.kind, order.key, answer.status, answer.body);
            self.surprises.push(surprise);
        }
    }

    /// Sends every order once more, after all faults, and notes those whose answer isn't what it was. Returns the keys
    /// of the orders whose answer is lost: it's another one, or there is none.
    pub fn ask_again(&mut self) -> Vec<String> {
        let mut lost = Vec::new();
        for place in 0..self.done.len() {
            let Done { order, answer, .. } = self.done[place].clone();
            let now = self.settle(&order);
            let said = |answer: &Answer| (answer.status, answer.body.clone());
            if now.is_none() || answer.is_some() && answer.as_ref().map(said) != now.as_ref().map(said) {
                lost.push(order.key);
            }
            self.done[place].answer = answer.or(now);
        }
        lost
    }
}

fn answer(kind: Kind, at: u64, response: &Response) -> Answer {
    let body = response.text();
    let value = serde_json::from_str(&body).unwrap_or_default();
    Answer {
        at,
        status: response.status,
        code: response.code(),
        replayed: response.is_replay(),
        made: kind.made(&value),
        body,
    }
}

/// Customers at work, each in a thread of its own.
pub struct Load {
    stop: Arc<AtomicBool>,
    abandon: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Customer>>,
}

impl Load {
    pub fn start(customers: Vec<Customer>) -> Self {
        let (stop, abandon) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let threads = customers.into_iter().map(|mut customer| {
            let stop = Arc::clone(&stop);
            customer.abandon = Arc::clone(&abandon);
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    customer.step();
                }
                customer
            })
        });
        let threads = threads.collect();
        Self { stop, abandon, threads }
    }

    /// Lets each finish what it's at.
    pub fn stop(mut self) -> Vec<Customer> {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.drain(..).map(|thread| thread.join().expect("a client has panicked")).collect()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        if self.threads.is_empty() {
            // They were stopped, and go on to ask again: with patience.
            return;
        }
        self.stop.store(true, Ordering::Relaxed);
        self.abandon.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
