//! Signatures of [Standard Webhooks](https://www.standardwebhooks.com), symmetric (`v1`).
//!
//! The signature covers `{webhook-id}.{webhook-timestamp}.{body}`, with HMAC-SHA-256 (RFC 2104). A message
//! can have several signatures, and a receiver several secrets, so that a secret can be replaced without
//! losing a message.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, Utc};
use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretBox, SecretString};
use sha2::Sha256;

/// Header with the id of the message, the same with every delivery.
pub const ID: &str = "webhook-id";
/// Header with the time at which this delivery was signed, in seconds since 1970.
pub const TIMESTAMP: &str = "webhook-timestamp";
/// Header with the signatures, separated by spaces.
pub const SIGNATURE: &str = "webhook-signature";

/// Maximum difference between the time of a signature and ours, in either direction.
pub const TOLERANCE_S: i64 = 5 * 60;

/// The refusal of a message whose headers are missing or malformed.
const MALFORMED: Refusal =
    Refusal::Malformed("has no `webhook-id`, `webhook-timestamp` and `webhook-signature` that can be read");

/// Prefix of a secret.
const SECRET_PREFIX: &str = "whsec_";
/// Prefix of a symmetric signature.
const VERSION: &str = "v1,";
/// Minimum and maximum size of a secret in bytes, according to the specification.
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// A secret that signs messages.
#[derive(Debug)]
pub struct Secret(SecretBox<[u8]>);

impl Secret {
    /// Makes a secret from these bytes.
    pub fn new(bytes: &[u8]) -> Self {
        Self(SecretBox::new(bytes.into()))
    }

    /// Parses `whsec_` and base64. The error is a sentence, without the secret.
    pub fn parse(text: &str) -> Result<Self, String> {
        text.strip_prefix(SECRET_PREFIX)
            .and_then(|encoded| STANDARD.decode(encoded).ok())
            .filter(|bytes| SECRET_BYTES.contains(&bytes.len()))
            .map(|bytes| Self::new(&bytes))
            .ok_or_else(|| {
                let (least, most) = (SECRET_BYTES.start(), SECRET_BYTES.end());
                format!("A webhook secret is {SECRET_PREFIX} and {least} to {most} bytes in base64.")
            })
    }

    /// Text of the secret, for its rightful holder.
    pub fn reveal(&self) -> SecretString {
        format!("{SECRET_PREFIX}{}", STANDARD.encode(self.0.expose_secret())).into()
    }

    /// Signs a message that is sent at `timestamp` (seconds since 1970).
    pub fn sign(&self, id: &str, timestamp: i64, body: &[u8]) -> String {
        let mac = self.mac(id, &timestamp.to_string(), body);
        format!("{VERSION}{}", STANDARD.encode(mac.finalize().into_bytes()))
    }

    fn mac(&self, id: &str, timestamp: &str, body: &[u8]) -> Hmac<Sha256> {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(self.0.expose_secret()).expect("HMAC takes keys of any length");
        for part in [id.as_bytes(), b".", timestamp.as_bytes(), b".", body] {
            mac.update(part);
        }
        mac
    }
}

/// The reason why a message is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A part of the signature is missing or malformed. The text says which, as the predicate of a sentence about
    /// the message.
    Malformed(&'static str),
    /// The time of the message is too far from ours.
    OutOfTime,
    /// No signature is by one of our secrets.
    Forged,
}

impl Refusal {
    /// All reasons, as metrics count them.
    pub const NAMES: [&str; 3] = ["malformed", "out_of_time", "forged"];

    /// The reason for the sender, as the predicate of a sentence about the message.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Malformed(reason) => reason,
            Self::OutOfTime => "was signed more than five minutes ago, or will be",
            Self::Forged => "isn't signed by a secret that we know",
        }
    }

    /// Label in the metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed",
            Self::OutOfTime => "out_of_time",
            Self::Forged => "forged",
        }
    }
}

/// The headers of a signed message.
#[derive(Clone, Copy, Debug)]
pub struct SignatureHeaders<'a> {
    /// [`ID`].
    pub id: &'a str,
    /// [`TIMESTAMP`].
    pub timestamp: &'a str,
    /// [`SIGNATURE`].
    pub signature: &'a str,
}

/// Checks that one of the signatures is by one of `secrets`, and that it was made around `now`. Compares
/// signatures in constant time, and ignores those of other versions.
///
/// Errors, in the order checked: malformed, out of time, forged.
pub fn verify(
    secrets: &[Secret],
    signed: SignatureHeaders<'_>,
    body: &[u8],
    now: DateTime<Utc>,
) -> Result<(), Refusal> {
    let is_number = !signed.timestamp.is_empty() && signed.timestamp.bytes().all(|b| b.is_ascii_digit());
    let timestamp: i64 = match signed.timestamp.parse() {
        Ok(timestamp) if is_number && !signed.id.is_empty() && !signed.signature.is_empty() => timestamp,
        _ => return Err(MALFORMED),
    };
    if now.timestamp().abs_diff(timestamp) > TOLERANCE_S.unsigned_abs() {
        return Err(Refusal::OutOfTime);
    }
    // Computed once for all signatures: anybody can send thousands of them, and each would hash the whole
    // body again.
    let macs: Vec<_> = secrets.iter().map(|secret| secret.mac(signed.id, signed.timestamp, body)).collect();
    let mut signatures = signed
        .signature
        .split(' ')
        .filter_map(|signature| STANDARD.decode(signature.strip_prefix(VERSION)?).ok());
    let is_genuine =
        signatures.any(|signature| macs.iter().any(|mac| mac.clone().verify_slice(&signature).is_ok()));
    if is_genuine { Ok(()) } else { Err(Refusal::Forged) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
    const AT: i64 = 1_614_265_330;
    const BODY: &[u8] = br#"{"test": 2432232314}"#;

    fn specimen() -> Secret {
        Secret::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap()
    }

    fn verified(signature: &str, timestamp: &str, body: &[u8], seconds_later: i64) -> Result<(), Refusal> {
        let other = Secret::new(&[7; 32]);
        let now = DateTime::from_timestamp(AT + seconds_later, 0).unwrap();
        verify(&[other, specimen()], super::SignatureHeaders { id: ID, timestamp, signature }, body, now)
    }

    /// The example of the specification.
    #[test]
    fn signatures_are_those_of_the_specification() {
        let signature = specimen().sign(ID, AT, BODY);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        assert_eq!(specimen().reveal().expose_secret(), "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
    }

    #[test]
    fn any_of_several_signatures_by_any_of_several_secrets_will_do() {
        let at = AT.to_string();
        let good = specimen().sign(ID, AT, BODY);
        let bad = Secret::new(&[9; 32]).sign(ID, AT, BODY);
        assert_eq!(verified(&good, &at, BODY, 0), Ok(()));
        assert_eq!(verified(&format!("{bad} v1a,{} {good}", &bad[3..]), &at, BODY, 0), Ok(()));
        for forged in
            [&bad[..], "v1,", "v1,!", &good[3..], &good.replace("v1", "v2"), &good[..good.len() - 4]]
        {
            assert_eq!(verified(forged, &at, BODY, 0), Err(Refusal::Forged), "{forged}");
        }
        assert_eq!(verified(&good, &at, br#"{"test": 2432232315}"#, 0), Err(Refusal::Forged));
        assert_eq!(verified(&good, &(AT + 1).to_string(), BODY, 0), Err(Refusal::Forged));
    }

    #[test]
    fn signatures_are_taken_for_five_minutes_either_way() {
        let (at, good) = (AT.to_string(), specimen().sign(ID, AT, BODY));
        for (later, expected) in
            [(300, Ok(())), (301, Err(Refusal::OutOfTime)), (-300, Ok(())), (-301, Err(Refusal::OutOfTime))]
        {
            assert_eq!(verified(&good, &at, BODY, later), expected, "{later}");
        }
        for malformed in ["", "soon", "+1614265330", "1614265330.0", "99999999999999999999"] {
            assert_eq!(verified(&good, malformed, BODY, 0), Err(MALFORMED), "{malformed}");
        }
    }

    #[test]
    fn what_is_no_secret_is_refused() {
        for text in
            ["", "whsec_", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_short", "whsec_%%%", "whsec_YWJj"]
        {
            assert!(Secret::parse(text).is_err(), "{text}");
        }
    }
}

#[cfg(test)]
mod properties {
    use proptest::prelude::*;

    use super::*;

    const AT: i64 = 1_614_265_330;

    fn check(id: &str, timestamp: &str, signature: &str, body: &[u8]) -> Result<(), Refusal> {
        let now = DateTime::from_timestamp(AT, 0).unwrap();
        verify(&[Secret::new(&[1; 32])], SignatureHeaders { id, timestamp, signature }, body, now)
    }

    proptest! {
        #[test]
        fn any_headers_are_refused_unless_they_are_signed(
            id in any::<String>(), timestamp in "[0-9+-]{0,20}|1614265[0-9]{3}", signature in "(v1,)?[ -~]{0,60}",
            body in prop::collection::vec(any::<u8>(), 0..64),
        ) {
            prop_assert!(check(&id, &timestamp, &signature, &body).is_err());
        }

        #[test]
        fn a_signature_covers_every_bit(
            id in "[ -~]{1,30}", body in prop::collection::vec(any::<u8>(), 1..64), seconds in -300i64..=300,
            at in any::<prop::sample::Index>(), bit in 0u8..8,
        ) {
            let timestamp = AT + seconds;
            let signature = Secret::new(&[1; 32]).sign(&id, timestamp, &body);
            let timestamp = timestamp.to_string();
            prop_assert_eq!(check(&id, &timestamp, &signature, &body), Ok(()));
            let mut changed = body.clone();
            changed[at.index(body.len())] ^= 1 << bit;
            prop_assert_eq!(check(&id, &timestamp, &signature, &changed), Err(Refusal::Forged));
            prop_assert_eq!(check(&format!("{id}."), &timestamp, &signature, &body), Err(Refusal::Forged));
            let mut mac = STANDARD.decode(&signature[VERSION.len()..]).unwrap();
            let place = at.index(mac.len());
            mac[place] ^= 1 << bit;
            let forged = format!("{VERSION}{}", STANDARD.encode(&mac));
            prop_assert_eq!(check(&id, &timestamp, &forged, &body), Err(Refusal::Forged));
            mac.truncate(place);
            let short = format!("{VERSION}{}", STANDARD.encode(&mac));
            prop_assert_eq!(check(&id, &timestamp, &short, &body), Err(Refusal::Forged));
        }

        #[test]
        fn a_secret_is_read_as_it_is_shown_and_nothing_else_is(
            bytes in prop::collection::vec(any::<u8>(), 24..=64), text in "(whsec_)?[A-Za-z0-9+/=_-]{0,100}",
        ) {
            let shown = Secret::new(&bytes).reveal();
            let read = Secret::parse(shown.expose_secret()).unwrap();
            prop_assert_eq!(read.0.expose_secret(), &bytes[..]);
            if let Ok(secret) = Secret::parse(&text) {
                let shown = secret.reveal();
                prop_assert_eq!(shown.expose_secret(), &text);
            }
        }
    }
}
