//! Calls over a network that loses answers, for adapters.

use std::time::Duration;

use super::{Breaker, ProcessorCall, ProcessorError};

/// Maximum number of tries in one attempt.
const TRIES_MAX: u32 = 3;
/// Maximum pause before the second try. It doubles with each try.
const PAUSE: Duration = Duration::from_millis(100);

/// Has a provider do something once, and returns the outcome.
///
/// A call can end in four ways: it did what it should; it was declined or refused; it certainly didn't happen
/// (the connection was never made); or *nobody knows*, because the answer was lost. In the last case, `find`
/// asks the provider for the outcome under the key. Only if the provider doesn't know the key does `send`
/// repeat the call. The repetition has the same key, so it's harmless even if the first call is still on its
/// way. A later attempt of the same request begins with `find`.
///
/// Returns the error of the last try. A refusal is final and ends the tries.
pub async fn once<T, Find, Send>(
    call: &ProcessorCall,
    breaker: &Breaker,
    find: impl Fn() -> Find,
    send: impl Fn() -> Send,
) -> Result<T, ProcessorError>
where
    Find: Future<Output = Result<Option<T>, ProcessorError>>,
    Send: Future<Output = Result<T, ProcessorError>>,
{
    // An earlier attempt may have got through.
    let mut may_have_happened = call.attempt > 1;
    let mut error = ProcessorError::Down;
    for tries in 0..TRIES_MAX {
        if tries > 0 {
            let pause = PAUSE * 2_u32.pow(tries - 1);
            tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..=1.0))).await;
        }
        breaker.check()?;
        if may_have_happened {
            match find().await {
                Ok(Some(outcome)) => return Ok(outcome),
                Ok(None) => {}
                Err(lost) => {
                    error = lost;
                    continue;
                }
            }
        }
        error = match send().await {
            Ok(outcome) => return Ok(outcome),
            Err(refused @ ProcessorError::Refused { .. }) => return Err(refused),
            Err(lost) => lost,
        };
        may_have_happened |= !matches!(error, ProcessorError::Unreachable);
    }
    Err(error)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use ProcessorError::{AnswerLost, Failed, Refused, Unreachable};
    use prometheus::IntGauge;

    use super::*;
    use crate::base::ids::MerchantId;

    /// Runs the calls of an attempt, with these answers of the processor, in this order. Returns the calls,
    /// `f` for `find` and `s` for `send`, and the outcome.
    fn play(
        attempt: u32,
        found: Vec<Result<Option<u8>, ProcessorError>>,
        sent: Vec<Result<u8, ProcessorError>>,
    ) -> (String, Result<u8, ProcessorError>) {
        let call = ProcessorCall {
            key: "k".to_owned(),
            merchant: MerchantId(uuid::Uuid::nil()),
            reference: "ch_1".to_owned(),
            attempt,
        };
        let breaker = Breaker::new(IntGauge::new("a", "b").expect("valid"));
        let log = RefCell::new(String::new());
        let (found, sent) = (RefCell::new(found.into_iter()), RefCell::new(sent.into_iter()));
        let find = || {
            log.borrow_mut().push('f');
            std::future::ready(found.borrow_mut().next().expect("it isn't asked so often"))
        };
        let send = || {
            log.borrow_mut().push('s');
            std::future::ready(sent.borrow_mut().next().expect("it isn't sent so often"))
        };
        let outcome = actix_web::rt::System::new().block_on(once(&call, &breaker, find, send));
        (log.into_inner(), outcome)
    }

    #[test]
    fn what_may_have_happened_is_asked_about_before_it_is_sent_again() {
        let told = |(log, outcome): (String, Result<u8, ProcessorError>)| (log, outcome.ok());
        let is = |log: &str, outcome| (log.to_owned(), outcome);
        assert_eq!(told(play(1, vec![], vec![Ok(1)])), is("s", Some(1)));
        assert_eq!(told(play(2, vec![Ok(Some(1))], vec![])), is("f", Some(1)));
        assert_eq!(told(play(2, vec![Ok(None)], vec![Ok(1)])), is("fs", Some(1)));
        for lost in [AnswerLost, Failed] {
            assert_eq!(told(play(1, vec![Ok(Some(1))], vec![Err(lost)])), is("sf", Some(1)));
        }
        // The call never reached the processor, so there is nothing to ask.
        assert_eq!(told(play(1, vec![], vec![Err(Unreachable), Ok(1)])), is("ss", Some(1)));
        // Without an answer to `find`, the call isn't repeated.
        let (log, outcome) = play(1, vec![Err(AnswerLost), Err(Failed)], vec![Err(AnswerLost)]);
        assert!(log == "sff" && matches!(outcome, Err(Failed)), "{log} {outcome:?}");
        // A refusal is final.
        let refused = || Err(Refused { code: "no".to_owned() });
        let (log, outcome) = play(1, vec![], vec![refused()]);
        assert!(log == "s" && matches!(outcome, Err(Refused { .. })), "{log} {outcome:?}");
    }
}
