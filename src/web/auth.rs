//! Authentication: bearer keys of merchants and of operators.
//!
//! A merchant's key is `sk_test_`, the merchant's id and a secret, 32 hexadecimal digits each. Since the key
//! names its merchant, the look-up starts with `merchant_id`, like every other access to a merchant's rows.
//! The database holds only the SHA-256 of a key. A key has 128 random bits, which nobody can guess, so a slow
//! password hash would only slow the service down.

use std::collections::HashSet;
use std::sync::Mutex;

use actix_web::dev::Payload;
use actix_web::http::header::AUTHORIZATION;
use actix_web::{FromRequest, HttpMessage, HttpRequest, web};
use diesel::prelude::*;
use futures_util::future::LocalBoxFuture;
use secrecy::SecretString;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::base::ids::MerchantId;
use crate::error::{Error, Failure};
use crate::storage::admission::Place;
use crate::storage::db::Db;
use crate::storage::party::{self, Party};
use crate::storage::schema::{api_keys, operator_keys};
use crate::web::query::{Caller, without_query};

/// Prefix of a merchant's key.
pub const API_KEY_PREFIX: &str = "sk_test_";
/// Prefix of an operator's key.
pub const OPERATOR_KEY_PREFIX: &str = "ok_";

/// SHA-256 of a key, which is stored in its place.
pub fn key_sha256(key: &str) -> Vec<u8> {
    Sha256::digest(key.as_bytes()).to_vec()
}

/// The merchant that an API key names, whether or not the key is valid.
pub fn merchant_of_key(key: &str) -> Option<MerchantId> {
    let digits = key.strip_prefix(API_KEY_PREFIX)?.get(..32)?;
    Uuid::parse_str(digits).ok().map(MerchantId)
}

/// Draws a new API key for `merchant`.
pub fn new_api_key(merchant: MerchantId) -> String {
    format!("{API_KEY_PREFIX}{}{}", merchant.0.as_simple(), secret())
}

/// Draws a new operator key.
pub fn new_operator_key() -> String {
    format!("{OPERATOR_KEY_PREFIX}{}", secret())
}

/// 128 bits from the operating system's generator, in hexadecimal.
fn secret() -> String {
    hex::encode(rand::random::<[u8; 16]>())
}

/// A password that needs no escaping in a connection string.
pub fn new_password() -> SecretString {
    secret().into()
}

/// The merchant in whose name operators' idempotency keys are kept.
pub const OPERATORS: MerchantId = MerchantId(Uuid::nil());

/// The merchant whose valid key came with the request.
///
/// Errors, in the order checked: `api_key_missing`, `overloaded`, `operator_key_not_allowed`, `api_key_invalid`,
/// `api_key_revoked`, `database_unavailable`; as an extractor also `validation_failed` if there is a query.
#[derive(Clone, Copy, Debug)]
pub struct AuthenticatedMerchant(pub MerchantId);

impl AuthenticatedMerchant {
    /// Authenticates `req`, which keeps its place in the queue for the database.
    pub async fn of(req: &HttpRequest) -> Result<Self, Error> {
        let (merchant, place) = Self::queue(req).await?;
        req.extensions_mut().insert(place);
        Ok(Self(merchant))
    }

    async fn queue(req: &HttpRequest) -> Result<(MerchantId, Place), Error> {
        Self::queue_with(req, bearer(req)?).await
    }

    async fn queue_with(req: &HttpRequest, key: &str) -> Result<(MerchantId, Place), Error> {
        let key = key.to_owned();
        let named = merchant_of_key(&key);
        look_up(req, &key_sha256(&key), named, move |conn| {
            let merchant = authenticate(conn, &key)?;
            Ok((merchant, merchant))
        })
        .await
    }

    /// Like [`of`](Self::of), with a key that came in another way than in the `Authorization` header.
    pub async fn of_key(req: &HttpRequest, key: &str) -> Result<Self, Error> {
        let (merchant, place) = Self::queue_with(req, key).await?;
        req.extensions_mut().insert(place);
        Ok(Self(merchant))
    }
}

impl Caller for AuthenticatedMerchant {
    fn authenticate(req: HttpRequest) -> LocalBoxFuture<'static, Result<Self, Error>> {
        Box::pin(async move { Self::of(&req).await })
    }
}

impl FromRequest for AuthenticatedMerchant {
    type Error = Error;
    type Future = LocalBoxFuture<'static, Result<Self, Error>>;

    fn from_request(req: &HttpRequest, _: &mut Payload) -> Self::Future {
        Box::pin(without_query(req.clone()))
    }
}

/// The operator whose valid key came with the request.
///
/// Errors, in the order checked: `api_key_missing`, `overloaded`, `operator_key_required` for a key of a merchant,
/// `api_key_invalid`, `api_key_revoked`, `database_unavailable`; as an extractor also `validation_failed` if there
/// is a query.
#[derive(Clone, Debug)]
pub struct AuthenticatedOperator {
    /// Name and id of the key, for records of changes.
    pub name: String,
    /// SHA-256 of the key, as in the database.
    pub sha256: Vec<u8>,
}

impl AuthenticatedOperator {
    /// Authenticates `req`, which keeps its place in the queue for the database.
    pub async fn of(req: &HttpRequest) -> Result<Self, Error> {
        let (operator, place) = Self::queue(req).await?;
        req.extensions_mut().insert(place);
        Ok(operator)
    }

    /// Authenticates `req`, which takes another place once it has been received. Errors as with [`of`](Self::of).
    pub async fn identify(req: &HttpRequest) -> Result<Self, Error> {
        Ok(Self::queue(req).await?.0)
    }

    async fn queue(req: &HttpRequest) -> Result<(Self, Place), Error> {
        Self::queue_with(req, bearer(req)?).await
    }

    /// Like [`of`](Self::of), with a key that came in another way than in the `Authorization` header.
    pub async fn of_key(req: &HttpRequest, key: &str) -> Result<Self, Error> {
        let (operator, place) = Self::queue_with(req, key).await?;
        req.extensions_mut().insert(place);
        Ok(operator)
    }

    async fn queue_with(req: &HttpRequest, key: &str) -> Result<(Self, Place), Error> {
        let key = key.to_owned();
        let sha256 = key_sha256(&key);
        // A merchant's key may be known, and names no operator all the same.
        let named = (!key.starts_with(API_KEY_PREFIX)).then_some(OPERATORS);
        let authenticated =
            look_up(req, &sha256, named, move |conn| Ok((OPERATORS, authenticate_operator(conn, &key)?)));
        let (name, place) = authenticated.await?;
        Ok((Self { name, sha256 }, place))
    }
}

impl Caller for AuthenticatedOperator {
    fn authenticate(req: HttpRequest) -> LocalBoxFuture<'static, Result<Self, Error>> {
        Box::pin(async move { Self::of(&req).await })
    }
}

impl FromRequest for AuthenticatedOperator {
    type Error = Error;
    type Future = LocalBoxFuture<'static, Result<Self, Error>>;

    fn from_request(req: &HttpRequest, _: &mut Payload) -> Self::Future {
        Box::pin(without_query(req.clone()))
    }
}

/// A merchant's key from a mutating request: valid as far as is known without the database. The statement
/// that looks the idempotency key up also checks this key, so that authentication costs no round trip of its
/// own. Until then, nothing may be revealed or done.
#[derive(Clone, Debug)]
pub struct PresentedKey {
    /// The merchant that the key names.
    pub merchant: MerchantId,
    /// SHA-256 of the key, as in the database.
    pub sha256: Vec<u8>,
}

impl PresentedKey {
    /// Reads the key from `req`. A key that is new to this instance is authenticated right away, so that a
    /// stranger gets no further. Errors as with [`AuthenticatedMerchant`].
    pub async fn of(req: &HttpRequest, known: &KnownKeys) -> Result<Self, Error> {
        let key = bearer(req)?;
        let sha256 = key_sha256(key);
        if let Some(merchant) = merchant_of_key(key)
            && known.contains(&sha256)
        {
            return Ok(Self { merchant, sha256 });
        }
        // The request takes another place, among its merchant's, once it has been received.
        let (merchant, _place) = AuthenticatedMerchant::queue(req).await?;
        Ok(Self { merchant, sha256 })
    }
}

/// Looks a key up, whose SHA-256 is `sha256`, and returns what `find` does, with a place in the queue for the database.
/// `find` also returns whose key it is. A known key waits among the requests of `named`, another one among strangers'.
///
/// Errors: `overloaded`, then those of `find`.
async fn look_up<T: Send + 'static>(
    req: &HttpRequest,
    sha256: &[u8],
    named: Option<MerchantId>,
    find: impl Fn(&mut PgConnection) -> Result<(MerchantId, T), Error> + Send + Sync + 'static,
) -> Result<(T, Place), Error> {
    let db = req.app_data::<web::Data<Db>>().expect("the server provides it");
    let known = req.app_data::<web::Data<KnownKeys>>().expect("the server provides it");
    let party = match named {
        Some(named) if known.contains(sha256) => Party::Caller(named),
        _ => Party::Strangers,
    };
    party::belongs_to(party);
    let place = db.admit(party)?;
    let (owner, found) = db.run_retrying(find).await.inspect_err(|error| {
        if let Error::Failure(Failure::ApiKeyInvalid | Failure::ApiKeyRevoked) = error {
            known.remove(sha256);
        }
    })?;
    party::belongs_to(Party::Caller(owner));
    known.add(sha256);
    Ok((found, place))
}

/// The keys that were valid when this instance last saw them.
#[derive(Debug, Default)]
pub struct KnownKeys {
    sha256s: Mutex<HashSet<Vec<u8>>>,
}

impl KnownKeys {
    /// Maximum number of known keys: a few megabytes.
    const KEYS_MAX: usize = 50_000;

    fn contains(&self, sha256: &[u8]) -> bool {
        self.sha256s.lock().expect("no holder panics").contains(sha256)
    }

    fn add(&self, sha256: &[u8]) {
        let mut sha256s = self.sha256s.lock().expect("no holder panics");
        if sha256s.contains(sha256) {
            return;
        }
        if sha256s.len() >= Self::KEYS_MAX {
            // The keys are authenticated once more, without other effects.
            sha256s.clear();
        }
        sha256s.insert(sha256.to_vec());
    }

    /// Forgets a key that isn't valid, or not any more.
    pub fn remove(&self, sha256: &[u8]) {
        self.sha256s.lock().expect("no holder panics").remove(sha256);
    }
}

fn authenticate_operator(conn: &mut PgConnection, key: &str) -> Result<String, Error> {
    if key.starts_with(API_KEY_PREFIX) {
        // Only the holder of a valid operator key learns that it was recognized.
        return Err(authenticate(conn, key).err().unwrap_or(Error::OperatorKeyRequired));
    }
    let found = find_operator_key(conn, key)?;
    must_be_live(found.as_ref().map(|found| found.is_revoked))?;
    Ok(found.map(|found| format!("{} ({})", found.name, found.id.as_simple())).unwrap_or_default())
}

#[derive(Queryable)]
struct OperatorKey {
    id: Uuid,
    name: String,
    is_revoked: bool,
}

fn find_operator_key(conn: &mut PgConnection, key: &str) -> Result<Option<OperatorKey>, Error> {
    Ok(operator_keys::table
        .filter(operator_keys::key_sha256.eq(key_sha256(key)))
        .select((operator_keys::id, operator_keys::name, operator_keys::revoked_at.is_not_null()))
        .first(conn)
        .optional()?)
}

/// Refuses a key that is unknown (`None`) or revoked.
fn must_be_live(is_revoked: Option<bool>) -> Result<(), Error> {
    match is_revoked {
        None => Err(Failure::ApiKeyInvalid.into()),
        Some(true) => Err(Failure::ApiKeyRevoked.into()),
        Some(false) => Ok(()),
    }
}

/// The token of the `Authorization` header (RFC 6750). The scheme's name is case-insensitive.
fn bearer(req: &HttpRequest) -> Result<&str, Error> {
    let mut headers = req.headers().get_all(AUTHORIZATION);
    let header = headers.next().ok_or(Error::ApiKeyMissing)?;
    if headers.next().is_some() {
        return Err(Failure::ApiKeyInvalid.into());
    }
    let (scheme, token) =
        header.to_str().ok().and_then(|text| text.split_once(' ')).ok_or(Error::ApiKeyMissing)?;
    if scheme.eq_ignore_ascii_case("Bearer") { Ok(token.trim()) } else { Err(Error::ApiKeyMissing) }
}

fn authenticate(conn: &mut PgConnection, key: &str) -> Result<MerchantId, Error> {
    if key.starts_with(OPERATOR_KEY_PREFIX) {
        // Only the holder of a live key learns that it was recognized.
        let is_live = find_operator_key(conn, key)?.is_some_and(|found| !found.is_revoked);
        return Err(if is_live { Error::OperatorKeyNotAllowed } else { Failure::ApiKeyInvalid.into() });
    }
    let merchant = merchant_of_key(key).ok_or(Failure::ApiKeyInvalid)?;
    let is_revoked = api_keys::table
        .filter(api_keys::merchant_id.eq(merchant))
        .filter(api_keys::key_sha256.eq(key_sha256(key)))
        .select(api_keys::revoked_at.is_not_null())
        .first::<bool>(conn)
        .optional()?;
    must_be_live(is_revoked).map(|()| merchant)
}
