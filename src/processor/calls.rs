//! Calls over a network that loses answers, for adapters.

use std::time::Duration;

use super::{Breaker, ProcessorCall, ProcessorError};

/// Times that a call is sent or asked about in one attempt.
const TRIES_MAX: u32 = 3;
/// Longest pause before the second try; doubles.
const PAUSE: Duration = Duration::from_millis(100);

/// Has a provider do something once, and finds out what came of it.
///
/// A call can end in four ways: it did what it should; it was declined or refused; it certainly didn't happen (the
/// connection was never made); or *nobody knows*, because the answer was lost. Of the last nothing is assumed: `find` asks
/// the provider what came of the key, and only if it doesn't know the key does `send` send the call again, under the same
/// key, so that it's harmless even if the first one is still on its way. A later attempt of the same request begins with
/// that question.
///
/// An error is that of the last try. A refusal is final, so that nothing is tried after it.
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
