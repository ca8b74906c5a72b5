//! The protocol of an idempotency key, taken apart into its atomic steps and checked in every order of them.
//!
//! The other tests run the service and see the orders that happen to happen. Here a model of the protocol
//! goes through all that there are, within the bounds in [`Protocol`]: two workers, retries, crashes between
//! any two steps, leases that run out under a living owner, lost answers, a reaper. Each rule of the protocol
//! is also left out once, to see what it's for.
//!
//! # Promised
//!
//! A *life* of a key is the time from its first claim until it's forgotten. In each life:
//!
//! * at most one execution's effects are committed, and the processor acts at most once;
//! * an answer that a client gets is the committed one, which stays stored as it was until it expires;
//! * only requests with the fingerprint of the first are executed, and get its answer;
//! * the key is remembered until its answer has expired, so nothing ever removes a row in progress;
//! * whoever has stopped wherever, a recovery worker can finish the request, without a client.
//!
//! # The model's actions in the code
//!
//! | Action          | Code                                                                              |
//! |-----------------|-----------------------------------------------------------------------------------|
//! | `Ask`           | a client's request arrives, and `Look`                                            |
//! | `Look`          | `store::find`, `decision::decide`                                                 |
//! | `Claim`         | `store::claim_all`                                                                |
//! | `Reuse`         | `store::forget`, `store::claim`, in one transaction                               |
//! | `TakeOver`      | `store::take_over`                                                                |
//! | `Call`          | `ExternalOperation::perform`                                                      |
//! | `FailToCall`    | the same without an outcome, though the processor may have acted                  |
//! | `Release`       | `store::release`                                                                  |
//! | `Finish`        | `store::complete_all`; or `store::lock` to `store::complete`,                     |
//! |                 | or `store::lock_all` to `store::answer_all`, in one transaction                   |
//! | `FinishUnheard` | the same, but the connection breaks before the worker hears how it ended          |
//! | `FindWinner`    | `Engine::winners_answer`                                                          |
//! | `Respond`       | `Engine::respond`, and the client gets it; with `LoseAnswer` it doesn't           |
//! | `Recover`       | `recovery::find_due` finds the key; `TakeOver` follows, without a client           |
//! | `Crash`         | the process dies; one that is stopped just takes no step                          |
//! | `RunOutLease`   | `lease_expires_at` against `statement_timestamp()`                                    |
//! | `Expire`        | `expires_at` against `statement_timestamp()`                                          |
//! | `Shrink`        | `reaper::shrink`                                                                  |
//! | `Forget`        | `reaper::forget`                                                                  |
//!
//! Each that needs the row is one statement or transaction on the row as it is now; which one a worker takes
//! depends on what it has seen, which may be long ago. A refusal changes nothing, so it ends the request at
//! once. Not in the model: local operations, parking, and policies other than `on_expired`.
//!
//! `cargo test --test suite protocol -- --nocapture` tells how many states there are: some 600,000 in all.

use std::collections::BTreeSet;
use std::hash::{Hash, Hasher};

use stateright::{Checker, HasDiscoveries, Model, Property};

use Action::*;
use Fingerprint::*;
use Status::*;
use Step::*;

/// The rules, each of which can be left out, and how much happens at most.
#[derive(Clone, Copy, Debug)]
struct Protocol {
    /// `store::lock` lets nobody finish but the holder of the row's token.
    fence: bool,
    /// (merchant, key) is unique, and `store::claim_all` yields to a row that is there.
    unique_index: bool,
    /// `store::take_over` checks that the lease, which was seen run out, still is.
    lease_checked: bool,
    /// `store::take_over` checks that the row is still the one that was seen, by its `created_at`.
    created_checked: bool,
    /// `store::forget` checks that the row, which was seen expired, still is.
    expiry_checked: bool,
    /// `reaper::forget` deletes tombstones only.
    reaper_skips_in_progress: bool,
    /// The policy `on_expired` is `execute`. With `reject`, the code reuses keys whose tombstones' time is
    /// over in the same way; here, only the reaper frees those.
    execute_expired: bool,
    /// How often clients send the key with each fingerprint. The service keeps nothing per client, so one
    /// that sends four times, not always waiting for the answer, is the same as two that send twice.
    sends: [u8; 2],
    /// How often something goes wrong: a crash, a call without an outcome, a commit unheard of, a lease that
    /// runs out under a living owner.
    faults: u8,
}

/// The protocol as it is, and duplicates of one request.
const PROTOCOL: Protocol = Protocol {
    fence: true,
    unique_index: true,
    lease_checked: true,
    created_checked: true,
    expiry_checked: true,
    reaper_skips_in_progress: true,
    execute_expired: false,
    sends: [4, 0],
    faults: 3,
};

#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
enum Fingerprint {
    #[default]
    A,
    B,
}

/// Each claim and takeover draws the next. It stands for the bytes of its holder's answer as well, so that
/// executing twice shows as two different answers; and it counts the attempts.
type Token = u8;

#[derive(Clone, Debug, Default, PartialEq)]
struct State {
    /// One at most, if the key is unique.
    rows: Vec<Row>,
    workers: [Worker; 2],
    lives: Vec<Life>,
    last_token: Token,
    sends_left: [u8; 2],
    faults_left: u8,
}

/// Workers are alike: a state in which they change places is the same to the checker.
impl Hash for State {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        let [one, other] = self.workers;
        (one.min(other), one.max(other)).hash(hasher);
        (&self.rows, &self.lives, self.last_token, self.sends_left, self.faults_left).hash(hasher);
    }
}

#[derive(Clone, Debug, Hash, PartialEq)]
struct Row {
    /// Which life it belongs to: for the properties, no decision depends on it.
    life: usize,
    /// Stands for `created_at` and for `generation`, from which the processor's key is derived: both differ from
    /// those of any other life.
    created: Token,
    fingerprint: Fingerprint,
    status: Status,
}

#[derive(Clone, Copy, Debug, Hash, PartialEq)]
enum Status {
    /// In progress, with a live lease.
    Running(Token),
    /// In progress, with a lease that has run out.
    Abandoned(Token),
    Completed(Token),
    /// Completed, and past `expires_at`.
    Expired(Token),
    Tombstone,
}

impl Row {
    /// Whose it is while it's in progress.
    fn owner(&self) -> Option<Token> {
        match self.status {
            Running(token) | Abandoned(token) => Some(token),
            _ => None,
        }
    }
}

/// What came of one life of the key in the world.
#[derive(Clone, Debug, Default, Hash, PartialEq)]
struct Life {
    fingerprint: Fingerprint,
    /// Keys under which the processor has acted. Acting again under the same one changes nothing.
    charges: BTreeSet<Token>,
    commits: Vec<Task>,
    /// Answers that clients have got, and to what.
    acknowledged: BTreeSet<(Fingerprint, Token)>,
    expired: bool,
}

impl Life {
    fn committed_just(&self, answer: Token) -> bool {
        matches!(self.commits[..], [task] if task.token == answer)
    }
}

/// What a worker does next, by what it has seen, and for what. Nothing while it's idle.
type Worker = Option<(Step, Task)>;

/// A request, and the claim on its key or the answer to it, once there is one.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
struct Task {
    fingerprint: Fingerprint,
    /// A recovery has none.
    client: bool,
    life: usize,
    created: Token,
    token: Token,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Action {
    By(usize, Step),
    RunOutLease,
    Expire,
    Shrink,
    Forget,
}

#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
enum Step {
    Ask(Fingerprint),
    Recover,
    Look,
    Claim,
    Reuse,
    TakeOver,
    Call,
    FailToCall { acted: bool },
    Release,
    Finish,
    FinishUnheard { again: bool },
    FindWinner,
    Respond,
    LoseAnswer,
    Crash,
}

impl Step {
    fn is_fault(self) -> bool {
        matches!(self, FailToCall { .. } | FinishUnheard { .. } | Crash)
    }
}

impl State {
    fn row_of(&mut self, task: Task) -> Option<&mut Row> {
        self.rows.iter_mut().find(|row| row.owner() == Some(task.token))
    }

    fn has_living_owner(&self, row: &Row) -> bool {
        self.workers.iter().flatten().any(|(_, task)| row.owner() == Some(task.token))
    }

    fn each_life(&self, holds: impl Fn(&Life) -> bool) -> bool {
        self.lives.iter().all(holds)
    }
}

impl Protocol {
    /// Lets a worker take a step, and decides on its next.
    fn step(&self, state: &mut State, step: Step, task: Task) -> Worker {
        match step {
            Ask(fingerprint) => {
                state.sends_left[fingerprint as usize] -= 1;
                self.decide(state, Task { fingerprint, client: true, ..task })
            }
            Recover => {
                let Row { created, fingerprint, .. } = state.rows[0];
                Some((TakeOver, Task { created, fingerprint, ..task }))
            }
            Look => self.decide(state, task),
            Claim => self.claim(state, task),
            Reuse => {
                let expired = |row: &Row| matches!(row.status, Expired(_) | Tombstone);
                state.rows.retain(|row| self.expiry_checked && !expired(row));
                self.claim(state, task)
            }
            TakeOver => {
                let row = state.rows.iter_mut().find(|row| {
                    (matches!(row.status, Abandoned(_)) || row.owner().is_some() && !self.lease_checked)
                        && (row.created == task.created || !self.created_checked)
                });
                let Some(row) = row else {
                    return task.client.then_some((Look, Task { created: 0, ..task }));
                };
                state.last_token += 1;
                row.status = Running(state.last_token);
                Some((Call, Task { life: row.life, created: row.created, token: state.last_token, ..task }))
            }
            Call | FailToCall { .. } => {
                if step != (FailToCall { acted: false }) {
                    state.lives[task.life].charges.insert(task.created);
                }
                Some((if step == Call { Finish } else { Release }, task))
            }
            Release => {
                if let Some(row) = state.row_of(task) {
                    row.status = Abandoned(task.token);
                }
                None
            }
            Finish => self.finish(state, task),
            FinishUnheard { again } => {
                self.finish(state, task);
                Some((if again { Finish } else { Release }, task))
            }
            FindWinner => self.decide(state, task).filter(|(next, _)| *next == Respond),
            Respond => {
                state.lives[task.life].acknowledged.insert((task.fingerprint, task.token));
                None
            }
            LoseAnswer | Crash => None,
        }
    }

    fn decide(&self, state: &State, task: Task) -> Worker {
        let Some(row) = state.rows.first() else { return Some((Claim, task)) };
        match row.status {
            Expired(_) | Tombstone => self.execute_expired.then_some((Reuse, task)),
            _ if row.fingerprint != task.fingerprint => None,
            Running(_) => None,
            Abandoned(_) => Some((TakeOver, Task { created: row.created, ..task })),
            Completed(token) => Some((Respond, Task { life: row.life, created: row.created, token, ..task })),
        }
    }

    fn claim(&self, state: &mut State, task: Task) -> Worker {
        let fingerprint = task.fingerprint;
        if state.rows.is_empty() {
            state.lives.push(Life { fingerprint, ..Life::default() });
        } else if self.unique_index {
            return Some((Look, task));
        }
        state.last_token += 1;
        let (life, token) = (state.lives.len() - 1, state.last_token);
        state.rows.push(Row { life, created: token, fingerprint, status: Running(token) });
        Some((Call, Task { life, created: token, token, ..task }))
    }

    fn finish(&self, state: &mut State, task: Task) -> Worker {
        match state.row_of(task) {
            Some(row) => row.status = Completed(task.token),
            None if self.fence => return task.client.then_some((FindWinner, task)),
            None => state.rows.iter_mut().take(1).for_each(|row| row.status = Completed(task.token)),
        }
        state.lives[task.life].commits.push(task);
        task.client.then_some((Respond, task))
    }

    /// Whether a recovery worker finishes what is in progress, with nobody else taking another step.
    fn recovers(&self, state: &State) -> bool {
        let in_progress = |state: &State| state.rows.iter().any(|row| row.owner().is_some());
        if !in_progress(state) {
            return true;
        }
        let mut state = State { workers: [None; 2], ..state.clone() };
        for action in [RunOutLease, By(0, Recover), By(0, TakeOver), By(0, Call), By(0, Finish)] {
            let mut possible = vec![];
            self.actions(&state, &mut possible);
            if possible.contains(&action) {
                state = self.next_state(&state, action).unwrap_or(state);
            }
        }
        !in_progress(&state)
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State { sends_left: self.sends, faults_left: self.faults, ..State::default() }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let (row, may_fail) = (state.rows.first(), state.faults_left > 0);
        for (number, worker) in state.workers.iter().enumerate() {
            let steps: &[Step] = match worker {
                None => &[Ask(A), Ask(B), Recover],
                Some((Call, _)) => &[Call, FailToCall { acted: true }, FailToCall { acted: false }, Crash],
                Some((Finish, _)) => {
                    &[Finish, FinishUnheard { again: true }, FinishUnheard { again: false }, Crash]
                }
                Some((Respond, _)) => &[Respond, LoseAnswer],
                Some((step, _)) => &[*step, Crash],
            };
            actions.extend(steps.iter().map(|step| By(number, *step)));
        }
        actions.retain(|action| match action {
            By(_, Ask(fingerprint)) => state.sends_left[*fingerprint as usize] > 0,
            By(_, Recover) => row.is_some_and(|row| matches!(row.status, Abandoned(_))),
            By(_, step) => may_fail || !step.is_fault(),
            _ => true,
        });
        let Some(row) = row else { return };
        match row.status {
            // A lease without an owner always runs out in the end.
            Running(_) if may_fail || !state.has_living_owner(row) => actions.push(RunOutLease),
            Running(_) | Abandoned(_) => {}
            Completed(_) => actions.push(Expire),
            Expired(_) => actions.push(Shrink),
            Tombstone => actions.push(Forget),
        }
        if row.owner().is_some() && !self.reaper_skips_in_progress {
            actions.push(Forget);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        if let By(worker, step) = action {
            let task = last.workers[worker].map_or(Task::default(), |(_, task)| task);
            state.faults_left -= u8::from(step.is_fault());
            state.workers[worker] = self.step(&mut state, step, task);
            return Some(state);
        }
        let row = state.rows.first_mut()?;
        match (action, row.status) {
            (RunOutLease, Running(token)) => {
                row.status = Abandoned(token);
                state.faults_left -= u8::from(last.has_living_owner(&last.rows[0]));
            }
            (Expire, Completed(answer)) => {
                row.status = Expired(answer);
                state.lives[row.life].expired = true;
            }
            (Shrink, Expired(_)) => row.status = Tombstone,
            (Forget, _) => drop(state.rows.remove(0)),
            _ => return None,
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        /// Is found when a worker is about to take a step, for a task, and the row is in a status.
        macro_rules! seen {
            ($name:literal: $step:pat, $task:pat, $status:pat $(if $and:expr)?) => {
                Property::sometimes($name, |_, state: &State| {
                    let status = state.rows.first().map(|row| row.status);
                    state.workers.iter().flatten().any(|(step, task)| {
                        matches!((step, task, status), ($step, $task, $status) $(if $and)?)
                    })
                })
            };
        }
        let mut properties = vec![
            Property::always("one execution", |_, state: &State| {
                state.each_life(|life| life.commits.len() <= 1)
            }),
            Property::always("one charge", |_, state: &State| {
                state.each_life(|life| life.commits.len() <= life.charges.len() && life.charges.len() <= 1)
            }),
            Property::always("one answer", |_, state: &State| {
                state.each_life(|life| {
                    life.acknowledged.iter().all(|(_, answer)| life.committed_just(*answer))
                })
            }),
            Property::always("answer stays", |_, state: &State| {
                state.rows.iter().all(|row| match (row.status, &state.lives[row.life]) {
                    (Running(_) | Abandoned(_), life) => life.commits.is_empty(),
                    (Completed(answer) | Expired(answer), life) => life.committed_just(answer),
                    (Tombstone, life) => life.expired,
                })
            }),
            Property::always("same request", |_, state: &State| {
                state.each_life(|life| {
                    let executed = life.commits.iter().map(|task| task.fingerprint);
                    let answered = life.acknowledged.iter().map(|(fingerprint, _)| *fingerprint);
                    executed.chain(answered).all(|fingerprint| fingerprint == life.fingerprint)
                })
            }),
            Property::always("remembered", |_, state: &State| {
                let has_row = |life| state.rows.iter().any(|row| row.life == life);
                (0..state.lives.len()).all(|life| state.lives[life].expired || has_row(life))
            }),
            Property::always("recoverable", Self::recovers),
            Property::sometimes("a living owner is taken over", |_, state: &State| match state.workers {
                [Some((Finish, one)), Some((Finish, other))] => one.created == other.created,
                _ => false,
            }),
            Property::sometimes("two clients get one answer", |_, state: &State| match state.workers {
                [Some((Respond, one)), Some((Respond, other))] => one.token == other.token,
                _ => false,
            }),
            Property::sometimes("a forgotten key is used again", |_, state: &State| {
                state.lives.iter().skip(1).any(|life| !life.acknowledged.is_empty())
            }),
            seen!("a claim comes too late": Claim, _, Some(_)),
            seen!("a takeover comes too late": TakeOver, _, Some(Running(_))),
            seen!("a reaper comes between a look and a takeover": TakeOver, _, None),
            seen!("the fence refuses": FindWinner, _, Some(Running(_))),
            seen!("the fenced finds the winner": FindWinner, task, Some(Completed(it)) if it != task.token),
            seen!("a commit is unheard": Finish | Release, task, Some(Completed(own)) if own == task.token),
            seen!("a recovery executes without a client": Finish, Task { client: false, .. }, _),
        ];
        if self.execute_expired {
            properties.push(seen!("a reuse comes too late": Reuse, _, Some(Running(_))));
            properties.push(seen!("a reaper comes between a look and a reuse": Reuse, _, None));
        }
        properties
    }
}

/// Checks that the promises hold in every state, and that all that is interesting happens.
fn check(protocol: Protocol) {
    let checker = protocol.checker().spawn_bfs().join();
    println!("{} states, {} transitions", checker.unique_state_count(), checker.state_count());
    checker.assert_properties();
}

/// Checks that the checker finds a promise broken, and that `story` is one of the ways to break it.
fn check_broken(protocol: Protocol, promise: &'static str, story: &[&[Action]]) {
    let found = HasDiscoveries::AnyOf(BTreeSet::from([promise]));
    protocol.checker().finish_when(found).spawn_bfs().join().assert_discovery(promise, story.concat());
}

fn by<const N: usize>(worker: usize, steps: [Step; N]) -> [Action; N] {
    steps.map(|step| By(worker, step))
}

#[test]
fn duplicates_in_any_order_are_executed_once_whatever_fails() {
    check(PROTOCOL);
}

#[test]
fn duplicates_in_any_order_are_executed_once_per_life_of_a_key_that_is_reused() {
    check(Protocol { execute_expired: true, faults: 2, ..PROTOCOL });
}

#[test]
fn different_requests_with_one_key_are_never_executed_in_the_same_life() {
    check(Protocol { execute_expired: true, sends: [2, 1], ..PROTOCOL });
}

/// Checking it again saves work, no more.
#[test]
fn safety_does_not_hang_on_the_lease() {
    check(Protocol { lease_checked: false, faults: 2, ..PROTOCOL });
}

#[test]
fn without_the_fence_a_slow_owner_commits_a_second_time() {
    let protocol = Protocol { fence: false, ..PROTOCOL };
    let slow = by(0, [Ask(A), Claim, Call]);
    let recovery = by(1, [Recover, TakeOver, Call, Finish]);
    check_broken(protocol, "one execution", &[&slow, &[RunOutLease], &recovery, &by(0, [Finish])]);
}

#[test]
fn without_the_unique_index_both_claim_and_execute() {
    let protocol = Protocol { unique_index: false, ..PROTOCOL };
    let look = [by(0, [Ask(A)]), by(1, [Ask(A)])].concat();
    let call = [by(0, [Claim, Call]), by(1, [Claim, Call])].concat();
    check_broken(protocol, "one charge", &[&look, &call]);
    check_broken(protocol, "one execution", &[&look, &call, &by(0, [Finish]), &by(1, [Finish])]);
}

#[test]
fn a_reaper_of_rows_in_progress_makes_the_service_forget_a_charge() {
    let protocol = Protocol { reaper_skips_in_progress: false, ..PROTOCOL };
    check_broken(protocol, "remembered", &[&by(0, [Ask(A), Claim, Call]), &[Forget]]);
}

#[test]
fn a_reuse_that_does_not_check_again_removes_a_row_in_progress() {
    let protocol = Protocol { expiry_checked: false, execute_expired: true, ..PROTOCOL };
    let first = by(0, [Ask(A), Claim, Call, Finish, Respond]);
    let look = [by(0, [Ask(A)]), by(1, [Ask(A)])].concat();
    check_broken(protocol, "remembered", &[&first, &[Expire], &look, &by(1, [Reuse]), &by(0, [Reuse])]);
}

#[test]
fn a_takeover_that_does_not_check_again_executes_another_request() {
    let protocol = Protocol { created_checked: false, sends: [2, 1], faults: 2, ..PROTOCOL };
    let fails = FailToCall { acted: false };
    let story: [&[Action]; _] = [
        &by(0, [Ask(A), Claim, fails, Release]),
        // The retry is stopped when it has seen that. Meanwhile a recovery finishes, the key is forgotten,
        &by(0, [Ask(A)]),
        &by(1, [Recover, TakeOver, Call, Finish]),
        &[Expire, Shrink, Forget],
        // another request uses it and fails as well.
        &by(1, [Ask(B), Claim, fails, Release]),
        &by(0, [TakeOver, Call, Finish]),
    ];
    check_broken(protocol, "same request", &story);
}
