//! Calls over a network that loses answers, for adapters.

use std::time::Duration;

use super::{Asked, Breaker, ProcessorCall, ProcessorError, ProcessorOperation};

/// Maximum number of tries in one attempt.
const TRIES_MAX: u32 = 3;
/// Maximum pause before the second try. It doubles with each try.
const PAUSE: Duration = Duration::from_millis(100);

/// The words by which a breaker knows calls of a kind, and the question what has become of a call.
#[derive(Clone, Copy, Debug)]
pub struct Kinds {
    /// The call.
    pub call: &'static str,
    /// The question.
    pub find: &'static str,
}

/// Has a provider do something once, and returns the outcome.
///
/// A call can end in four ways: it did what it should; it was declined or refused; it certainly didn't happen
/// (the connection was never made); or *nobody knows*, because the answer was lost. In the last case, `find`
/// asks the provider for the outcome under the key. Only if the provider doesn't know the key does `send`
/// repeat the call. The repetition has the same key, so it's harmless even if the first call is still on its
/// way. A later attempt of the same request begins with `find`.
///
/// No answer is believed unseen. An operation must echo the call (see [`ProcessorOperation::answers`]): a connection that is
/// off by one answer, as HTTP clients and proxies have been, would otherwise give one charge the decision on another. An
/// answer that doesn't echo the call counts as lost, and `mismatched` is told, so that it can close the connections. A refusal
/// without an operation echoes nothing, so it counts only if the provider doesn't know the key and refuses a second time.
///
/// `kinds` are the words by which `breaker` knows the call and the question.
///
/// A provider that asks for a pause gets it: the attempt ends with [`ProcessorError::Busy`]. Nothing is concluded from such an
/// answer, since an earlier try, or a proxy's own limit behind it, leaves open what has become of the call.
///
/// An error is that of the last try.
pub async fn once<Find, Send>(
    call: &ProcessorCall,
    asked: &Asked<'_>,
    breaker: &Breaker,
    kinds: Kinds,
    mismatched: impl Fn(&ProcessorError),
    find: impl Fn() -> Find,
    send: impl Fn() -> Send,
) -> Result<ProcessorOperation, ProcessorError>
where
    Find: Future<Output = Result<Option<ProcessorOperation>, ProcessorError>>,
    Send: Future<Output = Result<ProcessorOperation, ProcessorError>>,
{
    let checked = |operation: ProcessorOperation| {
        operation.answers(call, asked).inspect_err(&mismatched)?;
        Ok(operation)
    };
    // An earlier attempt may have got through.
    let mut may_have_happened = call.attempt > 1;
    let mut refused = false;
    let mut error = ProcessorError::Down;
    for tries in 0..TRIES_MAX {
        if tries > 0 {
            let pause = PAUSE * 2_u32.pow(tries - 1);
            tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..=1.0))).await;
        }
        breaker.check(kinds.call)?;
        if may_have_happened {
            breaker.check(kinds.find)?;
            match find().await.and_then(|found| found.map(checked).transpose()) {
                Ok(Some(outcome)) => return Ok(outcome),
                Ok(None) => {}
                Err(busy @ ProcessorError::Busy { .. }) => return Err(busy),
                Err(lost) => {
                    // What is refused is the question, which says nothing of the call.
                    error = match lost {
                        ProcessorError::Refused(refusal) => ProcessorError::Rejected { code: refusal.code },
                        lost => lost,
                    };
                    continue;
                }
            }
        }
        error = match send().await.and_then(checked) {
            Ok(outcome) => return Ok(outcome),
            Err(confirmed @ ProcessorError::Refused(_)) if refused => return Err(confirmed),
            Err(ProcessorError::Refused(refusal)) => {
                refused = true;
                // What is returned if it's never confirmed.
                ProcessorError::Rejected { code: refusal.code }
            }
            // Sending the same again can't help, or mustn't be tried yet.
            Err(last @ (ProcessorError::Rejected { .. } | ProcessorError::Busy { .. })) => return Err(last),
            Err(lost) => lost,
        };
        may_have_happened |= !matches!(error, ProcessorError::Unreachable);
    }
    Err(error)
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use ProcessorError::{AnswerLost, Busy, Failed, Mismatch, Refused, Rejected, Unreachable};
    use chrono::DateTime;
    use prometheus::IntGauge;
    use rust_decimal::Decimal;

    use super::*;
    use crate::base::ids::MerchantId;
    use crate::base::money::Money;
    use crate::base::trace::TraceContext;
    use crate::processor::{CallRefusal, OperationKind, OperationStatus, RefusalReason};

    const KINDS: Kinds = Kinds { call: "authorize", find: "find" };

    fn call(attempt: u32) -> ProcessorCall {
        ProcessorCall {
            key: "k".to_owned(),
            merchant: MerchantId(uuid::Uuid::nil()),
            reference: "ch_1".to_owned(),
            attempt,
            trace: TraceContext::begin(),
        }
    }

    fn amount(cents: i64) -> Money {
        Money::from_stored(Decimal::new(cents, 2), "USD".parse().expect("there is such a currency"))
    }

    /// An answer to `call`: the operation `id`.
    fn operation(id: u8) -> ProcessorOperation {
        ProcessorOperation {
            id: id.to_string(),
            sequence: 1,
            kind: OperationKind::Authorize,
            idempotency_key: "k".to_owned(),
            status: OperationStatus::Succeeded,
            authorization_id: Some("auth_1".to_owned()),
            amount: Some(Decimal::new(500, 2)),
            currency: Some("USD".to_owned()),
            merchant: MerchantId(uuid::Uuid::nil()).to_string(),
            reference: "ch_1".to_owned(),
            created_at: DateTime::UNIX_EPOCH,
        }
    }

    type Found = Result<Option<ProcessorOperation>, ProcessorError>;
    type Sent = Result<ProcessorOperation, ProcessorError>;

    /// Calls in an attempt, where the processor is asked and sent what is given, in this order. What it was asked and sent:
    /// `f` and `s`; how it ended; and how many answers didn't fit.
    fn play(attempt: u32, found: Vec<Found>, sent: Vec<Sent>) -> (String, Sent, u32) {
        let (call, asked) = (call(attempt), Asked::to(OperationKind::Authorize).of(amount(500)));
        let breaker = Breaker::new(IntGauge::new("a", "b").expect("valid"));
        let (log, mismatches) = (RefCell::new(String::new()), Cell::new(0));
        let (found, sent) = (RefCell::new(found.into_iter()), RefCell::new(sent.into_iter()));
        let find = || {
            log.borrow_mut().push('f');
            std::future::ready(found.borrow_mut().next().expect("it isn't asked so often"))
        };
        let send = || {
            log.borrow_mut().push('s');
            std::future::ready(sent.borrow_mut().next().expect("it isn't sent so often"))
        };
        let mismatched = |_: &ProcessorError| mismatches.set(mismatches.get() + 1);
        let outcome = actix_web::rt::System::new()
            .block_on(once(&call, &asked, &breaker, KINDS, mismatched, find, send));
        (log.into_inner(), outcome, mismatches.get())
    }

    /// What was asked and sent, and the operation that it ended with.
    fn told((log, outcome, _): (String, Sent, u32)) -> (String, Option<String>) {
        (log, outcome.ok().map(|operation| operation.id))
    }

    fn is(log: &str, id: u8) -> (String, Option<String>) {
        (log.to_owned(), Some(id.to_string()))
    }

    #[test]
    fn what_may_have_happened_is_asked_about_before_it_is_sent_again() {
        let ok = || Ok(operation(1));
        let found = || Ok(Some(operation(1)));
        assert_eq!(told(play(1, vec![], vec![ok()])), is("s", 1));
        assert_eq!(told(play(2, vec![found()], vec![])), is("f", 1));
        assert_eq!(told(play(2, vec![Ok(None)], vec![ok()])), is("fs", 1));
        for lost in [AnswerLost, Failed] {
            assert_eq!(told(play(1, vec![found()], vec![Err(lost)])), is("sf", 1));
        }
        // Nobody has heard it, so there is nothing to ask.
        assert_eq!(told(play(1, vec![], vec![Err(Unreachable), ok()])), is("ss", 1));
        // Without an answer to the question it isn't sent again.
        let (log, outcome, _) = play(1, vec![Err(AnswerLost), Err(Failed)], vec![Err(AnswerLost)]);
        assert!(log == "sff" && matches!(outcome, Err(Failed)), "{log} {outcome:?}");
        // Nothing but people can help where the request isn't taken at all.
        let (log, outcome, _) = play(1, vec![], vec![Err(Rejected { code: "unauthorized".to_owned() })]);
        assert!(log == "s" && matches!(outcome, Err(Rejected { .. })), "{log} {outcome:?}");
    }

    #[test]
    fn a_provider_that_asks_for_a_pause_is_left_alone() {
        let busy = || Busy { retry_after: Duration::from_secs(9) };
        let (log, outcome, _) = play(1, vec![], vec![Err(busy())]);
        assert!(log == "s" && matches!(outcome, Err(Busy { .. })), "{log} {outcome:?}");
        let (log, outcome, _) = play(2, vec![Err(busy())], vec![]);
        assert!(log == "f" && matches!(outcome, Err(Busy { .. })), "{log} {outcome:?}");
        let (log, outcome, _) = play(1, vec![Err(busy())], vec![Err(AnswerLost)]);
        assert!(log == "sf" && matches!(outcome, Err(Busy { .. })), "{log} {outcome:?}");
    }

    #[test]
    fn a_refusal_is_final_once_it_is_confirmed() {
        let refused = || Err(Refused(CallRefusal::new("no", RefusalReason::Other)));
        let (log, outcome, _) = play(1, vec![Ok(None)], vec![refused(), refused()]);
        assert!(log == "sfs" && matches!(outcome, Err(Refused(_))), "{log} {outcome:?}");
        // It was the answer to another call.
        assert_eq!(told(play(1, vec![Ok(Some(operation(1)))], vec![refused()])), is("sf", 1));
        assert_eq!(told(play(1, vec![Ok(None)], vec![refused(), Ok(operation(1))])), is("sfs", 1));
        // A refusal of the question is none of the call.
        let asked = || Err(Refused(CallRefusal::new("gone", RefusalReason::Other)));
        let (log, outcome, _) = play(2, vec![asked(), asked(), asked()], vec![]);
        assert!(log == "fff" && matches!(outcome, Err(Rejected { .. })), "{log} {outcome:?}");
        // Nobody confirms it.
        let (log, outcome, _) = play(1, vec![Err(AnswerLost), Err(AnswerLost)], vec![refused()]);
        assert!(log == "sff" && matches!(outcome, Err(AnswerLost)), "{log} {outcome:?}");
        let (log, outcome, _) =
            play(1, vec![Ok(None), Ok(None)], vec![Err(AnswerLost), Err(AnswerLost), refused()]);
        assert!(log == "sfsfs" && matches!(outcome, Err(Rejected { .. })), "{log} {outcome:?}");
    }

    #[test]
    fn an_answer_to_another_call_is_no_answer() {
        type Change = fn(&mut ProcessorOperation);
        let changes: [(&str, Change); 7] = [
            ("idempotency_key", |operation| operation.idempotency_key.push('2')),
            ("kind", |operation| operation.kind = OperationKind::Capture),
            ("merchant", |operation| operation.merchant = MerchantId(uuid::Uuid::max()).to_string()),
            ("currency", |operation| operation.currency = Some("EUR".to_owned())),
            ("currency", |operation| operation.currency = None),
            ("amount", |operation| operation.amount = Some(Decimal::new(501, 2))),
            ("amount", |operation| operation.amount = None),
        ];
        for (member, change) in changes {
            let mut other = operation(2);
            change(&mut other);
            let differs = other.answers(&call(1), &Asked::to(OperationKind::Authorize).of(amount(500)));
            assert!(
                matches!(differs, Err(Mismatch { member: found }) if found == member),
                "{member} {differs:?}"
            );
            let played = play(1, vec![Ok(Some(other.clone())), Ok(Some(operation(1)))], vec![Ok(other)]);
            assert_eq!(played.2, 2, "{member}");
            assert_eq!(told(played), is("sff", 1), "{member}");
        }
    }

    #[test]
    fn another_reference_under_the_same_key_is_left_over_from_a_lost_claim() {
        let earlier = ProcessorOperation { reference: "ch_0".to_owned(), ..operation(1) };
        assert!(earlier.answers(&call(1), &Asked::to(OperationKind::Authorize).of(amount(500))).is_ok());
    }

    #[test]
    fn less_than_was_asked_for_is_an_answer_to_an_authorization_alone() {
        let less = operation(1);
        assert!(less.answers(&call(1), &Asked::to(OperationKind::Authorize).of(amount(2000))).is_ok());
        let capture = ProcessorOperation { kind: OperationKind::Capture, ..less };
        let asked = Asked::to(OperationKind::Capture).of(amount(2000)).on("auth_1");
        assert!(matches!(capture.answers(&call(1), &asked), Err(Mismatch { member: "amount" })));
        let asked = Asked::to(OperationKind::Capture).of(amount(500)).on("auth_2");
        assert!(matches!(capture.answers(&call(1), &asked), Err(Mismatch { member: "authorization_id" })));
        assert!(
            capture
                .answers(&call(1), &Asked::to(OperationKind::Capture).of(amount(500)).on("auth_1"))
                .is_ok()
        );
    }
}
