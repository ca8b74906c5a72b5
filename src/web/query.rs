//! Query strings of reads.
//!
//! A misspelled parameter must not silently show something else. So a caller that a handler asks for alone
//! ([`AuthenticatedMerchant`](super::auth::AuthenticatedMerchant) and the like) comes without any query, and a
//! handler gets one only from [`WithQuery`], whose parameters it has to name.

use actix_web::dev::Payload;
use actix_web::{FromRequest, HttpRequest};
use futures_util::future::LocalBoxFuture;

use crate::error::Error;

use super::lists::Parameters;

/// A caller of the API.
pub trait Caller: Sized + 'static {
    /// Authenticates the sender of `req`.
    fn authenticate(req: HttpRequest) -> LocalBoxFuture<'static, Result<Self, Error>>;
}

/// Authenticates the sender of a request that takes no query parameters.
///
/// Errors, in the order checked: those of authentication, `validation_failed`.
pub async fn without_query<C: Caller>(req: HttpRequest) -> Result<C, Error> {
    let caller = C::authenticate(req.clone()).await?;
    Parameters::read(req.query_string(), |_| caller)
}

/// A caller, and the query of a request that takes query parameters.
///
/// Errors: those of authentication.
pub struct WithQuery<C>(pub C, pub Query);

/// A query string.
pub struct Query(String);

impl Query {
    /// Reads all parameters with `read`. Returns all errors together, or the value of `read`.
    pub fn read<T>(&self, read: impl FnOnce(&mut Parameters) -> T) -> Result<T, Error> {
        Parameters::read(&self.0, read)
    }
}

impl<C: Caller> FromRequest for WithQuery<C> {
    type Error = Error;
    type Future = LocalBoxFuture<'static, Result<Self, Error>>;

    fn from_request(req: &HttpRequest, _: &mut Payload) -> Self::Future {
        let query = Query(req.query_string().to_owned());
        let caller = C::authenticate(req.clone());
        Box::pin(async move { Ok(Self(caller.await?, query)) })
    }
}
