//! Merchants, the tenants, and their prices. Operators create them.
//!
//! Prices are appended, each with the time from which it holds, and never changed. So a price can be set
//! ahead of time, and every past fee can be explained.

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, get, post, web};
use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::result::DatabaseErrorKind;
use rust_decimal::Decimal;
use serde::Serialize;
use utoipa::ToSchema;

use crate::base::ids::{ApiKeyId, MerchantId};
use crate::base::money::Pricing;
use crate::base::time::Timestamp;
use crate::error::Error;
use crate::host::{self, Caller, Context, Descriptor, Engine, Input, Oncepay};
use crate::idempotency::{
    IdempotentRequest, KeptHeader, LocalOperation, Operation, Reply, ResourceKind, Scope, Target,
};
use crate::storage::clock;
use crate::storage::db::Db;
use crate::storage::schema::{merchant_pricing, merchants};
use crate::tenants::api_keys::{self, ApiKey};
use crate::web::auth::AuthenticatedOperator;
use crate::web::fields::Fields;
use crate::web::lists::{List, Parameters, load_page};
use crate::web::problems::problems;
use crate::web::query::WithQuery;

/// Maximum number of characters in a name.
const NAME_MAX: usize = 100;
/// Maximum number of decimals in `fee_rate`.
const RATE_SCALE: u32 = 5;
/// Maximum number of decimals in `fee_fixed`.
const FIXED_SCALE: u32 = 4;

/// Merchants, as a resource kind.
pub static MERCHANT: ResourceKind = ResourceKind {
    scope: Scope::Service("merchant_id"),
    ..ResourceKind::new("merchant", MerchantId::PREFIX, "merchants", "/v1/operator/merchants/{id}")
};

/// A merchant.
#[derive(Debug, Serialize, ToSchema)]
pub struct Merchant {
    /// Time-ordered id.
    #[schema(value_type = String, example = "mer_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b")]
    id: MerchantId,
    /// Always `merchant`.
    #[schema(example = "merchant")]
    object: &'static str,
    /// Name of the merchant.
    #[schema(example = "Corner shop")]
    name: String,
    /// Time of its creation.
    #[schema(value_type = String, format = DateTime, example = "2026-01-31T09:30:00.000Z")]
    created_at: Timestamp,
    /// The current price and the future ones, each with the time from which it holds.
    prices: Vec<Price>,
    /// The merchant's first API key. Only in the answer to its creation.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    api_key: Option<ApiKey>,
}

/// The merchant's price per capture, from a time on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Price {
    /// Share of the captured amount, 0 to 1.
    #[schema(example = "0.029")]
    fee_rate: String,
    /// Fixed amount added to that share, in the currency of the charge.
    #[schema(example = "0.30")]
    fee_fixed: String,
    /// Time from which the price holds.
    #[schema(value_type = String, format = DateTime, example = "2026-01-31T09:30:00.000Z")]
    effective_at: Timestamp,
}

fn price((rate, fixed, effective_at): (Decimal, Decimal, DateTime<Utc>)) -> Price {
    Price {
        fee_rate: rate.normalize().to_string(),
        fee_fixed: fixed.normalize().to_string(),
        effective_at: Timestamp(effective_at),
    }
}

#[derive(Queryable, Selectable)]
#[diesel(table_name = merchants)]
struct MerchantRow {
    merchant_id: MerchantId,
    name: String,
    created_at: DateTime<Utc>,
}

impl MerchantRow {
    fn find(conn: &mut PgConnection, id: MerchantId) -> Result<Self, Error> {
        merchants::table
            .find(id)
            .select(Self::as_select())
            .first(conn)
            .optional()?
            .ok_or(Error::MerchantNotFound)
    }

    fn into_merchant(self, conn: &mut PgConnection) -> Result<Merchant, Error> {
        let now = clock::now(conn)?;
        let mut prices = merchant_pricing::table
            .filter(merchant_pricing::merchant_id.eq(self.merchant_id))
            .filter(merchant_pricing::effective_at.gt(now))
            .order(merchant_pricing::effective_at)
            .select((merchant_pricing::fee_rate, merchant_pricing::fee_fixed, merchant_pricing::effective_at))
            .load(conn)?;
        let current = merchant_pricing::table
            .filter(merchant_pricing::merchant_id.eq(self.merchant_id))
            .filter(merchant_pricing::effective_at.le(now))
            .order(merchant_pricing::effective_at.desc())
            .select((merchant_pricing::fee_rate, merchant_pricing::fee_fixed, merchant_pricing::effective_at))
            .first(conn)
            .optional()?;
        prices.splice(0..0, current);
        Ok(Merchant {
            id: self.merchant_id,
            object: "merchant",
            name: self.name,
            created_at: Timestamp(self.created_at),
            prices: prices.into_iter().map(price).collect(),
            api_key: None,
        })
    }
}

/// Fails with `merchant_not_found` if there is no such merchant.
pub(super) fn require(conn: &mut PgConnection, id: MerchantId) -> Result<(), Error> {
    MerchantRow::find(conn, id).map(|_| ())
}

/// Reads `fee_rate` and `fee_fixed`.
fn read_pricing(fields: &mut Fields<'_>) -> Option<Pricing> {
    let rate = fields.decimal("fee_rate", RATE_SCALE, Decimal::ONE);
    let fixed = fields.decimal("fee_fixed", FIXED_SCALE, Decimal::from(1_000_000));
    Some(Pricing { rate: rate?, fixed: fixed? })
}

fn insert_price(
    conn: &mut PgConnection,
    merchant: MerchantId,
    pricing: Pricing,
    effective_at: DateTime<Utc>,
) -> QueryResult<usize> {
    diesel::insert_into(merchant_pricing::table)
        .values((
            merchant_pricing::merchant_id.eq(merchant),
            merchant_pricing::effective_at.eq(effective_at),
            merchant_pricing::fee_rate.eq(pricing.rate),
            merchant_pricing::fee_fixed.eq(pricing.fixed),
        ))
        .execute(conn)
}

// ---- Create ----------------------------------------------------------------------------------------

/// Body of a new merchant.
#[derive(Debug, ToSchema)]
#[schema(example = json!({"name": "Corner shop", "fee_rate": "0.029", "fee_fixed": "0.30"}))]
#[serde(deny_unknown_fields)]
pub struct CreateMerchant {
    /// Name of the merchant.
    #[schema(min_length = 1, max_length = 100)]
    name: String,
    /// Share of each captured amount, as a decimal string from 0 to 1 with at most 5 decimals.
    #[schema(value_type = String, pattern = r"^(0(\.[0-9]{1,5})?|1(\.0{1,5})?)$")]
    fee_rate: Decimal,
    /// Fixed amount added to that share, as a decimal string with at most 4 decimals, in the currency of the
    /// charge. At most 1000000.
    #[schema(value_type = String, pattern = r"^([0-9]{1,6}(\.[0-9]{1,4})?|1000000(\.0{1,4})?)$")]
    fee_fixed: Decimal,
}

impl Operation for CreateMerchant {
    type Host = Oncepay;

    const DESCRIPTOR: Descriptor =
        Descriptor::new("merchants.create", "POST", "/v1/operator/merchants", Caller::Operator)
            .about(Target::New(&MERCHANT));

    fn read(input: &Input<'_>) -> Result<Self, Error> {
        Fields::read(input.body, |fields| {
            let name = fields.text("name", NAME_MAX);
            let pricing = read_pricing(fields)?;
            Some(Self { name: name?, fee_rate: pricing.rate, fee_fixed: pricing.fixed })
        })
    }
}

impl LocalOperation for CreateMerchant {
    fn execute(&self, conn: &mut PgConnection, context: &Context<'_>) -> Result<Reply, Error> {
        let id = MerchantId(context.resource_id()?);
        diesel::insert_into(merchants::table)
            .values((
                merchants::merchant_id.eq(id),
                merchants::name.eq(&self.name),
                merchants::created_at.eq(context.now()),
            ))
            .execute(conn)?;
        insert_price(conn, id, Pricing { rate: self.fee_rate, fixed: self.fee_fixed }, context.now())?;
        // Derived from the merchant's id, so that the claim doesn't have to store it.
        let key_id = ApiKeyId(id.0);
        let api_key = api_keys::create_for(conn, context, id, key_id, "first key")?;
        let mut merchant = MerchantRow::find(conn, id)?.into_merchant(conn)?;
        merchant.api_key = Some(api_key);
        host::record_action(conn, context.actor(), Self::DESCRIPTOR.name, &id.to_string(), None)?;
        let reply = Reply::json(StatusCode::CREATED, &merchant)?
            .header(KeptHeader::Location, format!("/v1/operator/merchants/{id}"));
        api_keys::seal(context, reply, key_id)
    }
}

problems!(CreateProblems, operating_mutating: SecretUnavailable);

/// Create a merchant
///
/// Creates a merchant with its price and a first API key. Only this answer and its replays show that key.
#[utoipa::path(
    operation_id = "operator.merchants.create",
    tag = "Operators",
    request_body = CreateMerchant,
    responses(
        (status = 201, description = "The merchant was created.", body = Merchant,
            headers(("Location" = String, description = "Path of the merchant"))),
        CreateProblems
    ),
)]
#[post("/v1/operator/merchants")]
pub async fn create(
    engine: web::Data<Engine>,
    request: IdempotentRequest<CreateMerchant>,
) -> Result<HttpResponse, Error> {
    engine.run_local(request).await
}

// ---- Read ------------------------------------------------------------------------------------------

problems!(ListProblems, operating:);

/// List merchants
///
/// Newest first, with the current and the future prices.
#[utoipa::path(
    operation_id = "operator.merchants.list",
    tag = "Operators",
    responses((status = 200, description = "A page of merchants.", body = List<Merchant>), ListProblems),
)]
#[get("/v1/operator/merchants")]
pub async fn list(
    db: web::Data<Db>,
    WithQuery(_operator, query): WithQuery<AuthenticatedOperator>,
) -> Result<HttpResponse, Error> {
    let page = query.read(Parameters::page::<MerchantId>)?;
    let merchants = db
        .run_retrying(move |conn| {
            let query = merchants::table.select(MerchantRow::as_select()).into_boxed();
            let rows: List<MerchantRow> = load_page!(conn, query, merchants::merchant_id, page)?;
            rows.try_map(|row| row.into_merchant(conn))
        })
        .await?;
    Ok(HttpResponse::Ok().json(merchants))
}

problems!(GetProblems, operating: MerchantNotFound);

/// Retrieve a merchant
///
/// Includes the current price and the future ones.
#[utoipa::path(
    operation_id = "operator.merchants.get",
    tag = "Operators",
    params(("id" = String, Path, description = "Id of the merchant", example = "mer_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b")),
    responses((status = 200, description = "The merchant.", body = Merchant), GetProblems),
)]
#[get("/v1/operator/merchants/{id}")]
pub async fn get(
    db: web::Data<Db>,
    _operator: AuthenticatedOperator,
    id: web::Path<String>,
) -> Result<HttpResponse, Error> {
    let id = id.parse::<MerchantId>().map_err(|_| Error::MerchantNotFound)?;
    let merchant = db.run_retrying(move |conn| MerchantRow::find(conn, id)?.into_merchant(conn)).await?;
    Ok(HttpResponse::Ok().json(merchant))
}

// ---- Change the price ------------------------------------------------------------------------------

/// Body of a new price.
#[derive(Debug, ToSchema)]
#[schema(example = json!({"fee_rate": "0.025", "fee_fixed": "0.30", "effective_at": "2027-01-01T00:00:00Z"}))]
#[serde(deny_unknown_fields)]
pub struct ChangePricing {
    #[schema(ignore)]
    id: Option<MerchantId>,
    /// Share of each captured amount, as a decimal string from 0 to 1 with at most 5 decimals.
    #[schema(value_type = String, pattern = r"^(0(\.[0-9]{1,5})?|1(\.0{1,5})?)$")]
    fee_rate: Decimal,
    /// Fixed amount added to that share, as a decimal string with at most 4 decimals, in the currency of the
    /// charge. At most 1000000.
    #[schema(value_type = String, pattern = r"^([0-9]{1,6}(\.[0-9]{1,4})?|1000000(\.0{1,4})?)$")]
    fee_fixed: Decimal,
    /// Time from which the price holds. Default: now. It can't be in the past, so that every capture keeps
    /// its fee.
    #[schema(value_type = Option<String>, format = DateTime)]
    effective_at: Option<DateTime<Utc>>,
}

impl Operation for ChangePricing {
    type Host = Oncepay;

    const DESCRIPTOR: Descriptor = Descriptor::new(
        "merchants.change_pricing",
        "POST",
        "/v1/operator/merchants/{id}/pricing",
        Caller::Operator,
    )
    .about(Target::Named(&MERCHANT, "id"));

    fn read(input: &Input<'_>) -> Result<Self, Error> {
        Fields::read(input.body, |fields| {
            let id = input.id("id");
            let pricing = read_pricing(fields);
            let effective_at = fields.optional_time("effective_at");
            let pricing = pricing?;
            Some(Self { id, fee_rate: pricing.rate, fee_fixed: pricing.fixed, effective_at })
        })
    }
}

impl LocalOperation for ChangePricing {
    fn execute(&self, conn: &mut PgConnection, context: &Context<'_>) -> Result<Reply, Error> {
        let id = self.id.ok_or(Error::MerchantNotFound)?;
        let merchant = MerchantRow::find(conn, id)?;
        let effective_at = self.effective_at.unwrap_or(context.now());
        if effective_at < context.now() {
            return Err(Error::field("/effective_at", "must not be in the past"));
        }
        let pricing = Pricing { rate: self.fee_rate, fixed: self.fee_fixed };
        insert_price(conn, id, pricing, effective_at).map_err(|error| match error {
            diesel::result::Error::DatabaseError(DatabaseErrorKind::UniqueViolation, _) => {
                Error::field("/effective_at", "has a price already")
            }
            error => error.into(),
        })?;
        host::record_action(conn, context.actor(), Self::DESCRIPTOR.name, &id.to_string(), None)?;
        Ok(Reply::json(StatusCode::CREATED, &merchant.into_merchant(conn)?)?)
    }
}

problems!(ChangePricingProblems, operating_mutating: MerchantNotFound);

/// Change a merchant's price
///
/// The price holds from now, or from a given time. Prices are added and never changed. Each capture pays the
/// price that holds at that time; a charge that is captured at once pays the price that held when its request
/// was first seen.
#[utoipa::path(
    operation_id = "operator.merchants.change_pricing",
    tag = "Operators",
    params(("id" = String, Path, description = "Id of the merchant", example = "mer_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b")),
    request_body = ChangePricing,
    responses((status = 201, description = "The merchant with its prices.", body = Merchant), ChangePricingProblems),
)]
#[post("/v1/operator/merchants/{id}/pricing")]
pub async fn change_pricing(
    engine: web::Data<Engine>,
    request: IdempotentRequest<ChangePricing>,
) -> Result<HttpResponse, Error> {
    engine.run_local(request).await
}
