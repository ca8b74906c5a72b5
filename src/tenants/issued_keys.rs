//! API keys that operators issue to a merchant, such as one that has none left.

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, post, web};
use diesel::PgConnection;

use super::api_keys::{self, ApiKey, CreateApiKey, NAME_MAX};
use super::merchants::{self, MERCHANT};
use crate::base::ids::{ApiKeyId, MerchantId};
use crate::error::Error;
use crate::host::{self, Caller, Context, Descriptor, Engine, Input, Oncepay};
use crate::idempotency::{IdempotentRequest, LocalOperation, Operation, Reply, Target};
use crate::web::fields::Fields;
use crate::web::problems::problems;

/// Body of an issued key.
pub struct IssueApiKey {
    merchant: Option<MerchantId>,
    name: String,
}

impl Operation for IssueApiKey {
    type Host = Oncepay;

    const DESCRIPTOR: Descriptor = Descriptor::new(
        "merchants.issue_api_key",
        "POST",
        "/v1/operator/merchants/{id}/api-keys",
        Caller::Operator,
    )
    .about(Target::Named(&MERCHANT, "id"));

    fn read(input: &Input<'_>) -> Result<Self, Error> {
        Fields::read(input.body, |fields| {
            Some(Self { merchant: input.id("id"), name: fields.text("name", NAME_MAX)? })
        })
    }
}

impl LocalOperation for IssueApiKey {
    fn execute(&self, conn: &mut PgConnection, context: &Context<'_>) -> Result<Reply, Error> {
        let merchant = self.merchant.ok_or(Error::MerchantNotFound)?;
        merchants::require(conn, merchant)?;
        let id = ApiKeyId::at(context.now());
        let api_key = api_keys::create_for(conn, context, merchant, id, &self.name)?;
        let subject = format!("{merchant}/{id}");
        host::record_action(conn, context.actor(), Self::DESCRIPTOR.name, &subject, None)?;
        api_keys::seal(context, Reply::json(StatusCode::CREATED, &api_key)?, id)
    }
}

problems!(IssueProblems, operating_mutating: MerchantNotFound, SecretUnavailable);

/// Issue an API key to a merchant
///
/// For a merchant that has no key left, or has lost the one that it has. Only this answer and its replays show
/// the secret key. The merchant sees the key in its list and can revoke it. `operator_actions` keeps who issued
/// it.
#[utoipa::path(
    operation_id = "operator.merchants.issue_api_key",
    tag = "Operators",
    params(("id" = String, Path, description = "Id of the merchant", example = "mer_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b")),
    request_body = CreateApiKey,
    responses((status = 201, description = "The key was issued.", body = ApiKey), IssueProblems),
)]
#[post("/v1/operator/merchants/{id}/api-keys")]
pub async fn issue(
    engine: web::Data<Engine>,
    request: IdempotentRequest<IssueApiKey>,
) -> Result<HttpResponse, Error> {
    engine.run_local(request).await
}
