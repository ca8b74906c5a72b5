//! Creation of a charge.
//!
//! A charge with the amount, currency, payment method and reference of another one, which was created a short
//! time ago under another key, is a *suspected duplicate*: its client may make a new key per attempt instead
//! of per payment. Depending on the policy, the charge is created and the answer names the other one, or it's
//! refused.
//!
//! The claim allocates the charge's id. The processor authorizes the charge and, with `capture`, captures it.
//! One transaction then writes the charge, the journal entry, the event and the answer. If the service dies
//! before it calls the processor, nothing has happened. If it dies afterwards, the next attempt calls the
//! processor again under the same derived key, gets the same outcome, and writes the same charge.

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, post, web};
use async_trait::async_trait;
use chrono::Duration;
use diesel::prelude::*;
use diesel::sql_types::{Nullable, Numeric, Text, Uuid as SqlUuid};
use rust_decimal::Decimal;
use serde_json::json;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::base::ids::ChargeId;
use crate::base::money::{Currency, Money, Pricing};
use crate::error::{Error, SUSPECTED_DUPLICATE_OF};
use crate::events::EventType;
use crate::host::{self, Caller, Context, Descriptor, Engine, Input, Oncepay};
use crate::idempotency::{
    BatchedOperation, Batching, Commit, Effects, ExternalOperation, IdempotentRequest, KeptHeader, Operation,
    Policy, PolicySetting, Reply, SettingKind, SettingValue, Target,
};
use crate::payments::pricing;
use crate::processor::{Authorization, Decision, Decline, ProcessorError, or_refusal};
use crate::storage::sql::statement;
use crate::web::fields::{Fields, Metadata, TEXT_MAX, parse_json};
use crate::web::lists::lowest_id;
use crate::web::problems::problems;
use crate::web::texts::Texts;

use super::{Charge, ChargeRow, ChargeStatus, alike_lock};

/// Maximum number of characters in `reference`.
const REFERENCE_MAX: usize = 255;

/// Name of the setting for suspected duplicates.
const ON_SUSPECTED_DUPLICATE: &str = "on_suspected_duplicate";
/// Value of that setting that refuses a suspected duplicate.
const REJECT: &str = "reject";
/// Name of the setting for the time over which duplicates are suspected.
const SUSPICION_WINDOW_SECONDS: &str = "suspicion_window_seconds";

/// Policy settings that only this operation has.
const SUSPICION_SETTINGS: &[PolicySetting] = &[
    PolicySetting {
        name: ON_SUSPECTED_DUPLICATE,
        kind: SettingKind::Choice(&["report", REJECT]),
        default: SettingValue::Word("report"),
        meaning: "Treatment of a charge that looks like another one under another key: with `report` it's created, and the \
            answer names the other; with `reject` it's refused.",
    },
    PolicySetting {
        name: SUSPICION_WINDOW_SECONDS,
        kind: SettingKind::Number(0, 86_400),
        default: SettingValue::Number(10 * 60),
        meaning: "Time over which earlier charges are compared; 0 turns the check off.",
    },
];

/// Body of a new charge.
#[derive(Debug, ToSchema)]
#[schema(example = json!({
    "amount": "12.50", "currency": "USD", "payment_method": "pm_card_visa",
    "reference": "order-1001", "metadata": {"cart": "7f3a"}
}))]
#[serde(deny_unknown_fields)]
pub struct CreateCharge {
    /// Decimal string greater than zero, with at most as many decimals as the currency has and 12 digits
    /// before the point.
    #[schema(value_type = String, pattern = r"^[0-9]{1,12}(\.[0-9]{1,4})?$", example = "12.50")]
    amount: Money,
    /// ISO 4217 code of a currency in use, in upper case.
    #[schema(value_type = String, pattern = "^[A-Z]{3}$", example = "USD")]
    #[expect(dead_code, reason = "amount holds it too; it's here for the schema")]
    currency: Currency,
    /// Token of a payment method.
    #[schema(min_length = 1, max_length = 500, example = "pm_card_visa")]
    payment_method: String,
    /// Whether to capture at once. If false, the money is only held. Default: true.
    #[schema(value_type = Option<bool>, nullable = false)]
    capture: bool,
    /// Free text, without control characters other than tabs and line breaks.
    #[schema(min_length = 1, max_length = 500)]
    description: Option<String>,
    /// Your own name for the payment, without control characters and in Unicode normalization form C.
    #[schema(min_length = 1, max_length = 255)]
    reference: Option<String>,
    /// Up to 50 entries, names up to 40 and values up to 500 characters.
    #[schema(value_type = Option<std::collections::BTreeMap<String, String>>)]
    metadata: Metadata,
}

impl Operation for CreateCharge {
    type Host = Oncepay;

    const DESCRIPTOR: Descriptor = Descriptor::new("charges.create", "POST", "/v1/charges", Caller::Merchant)
        .about(Target::New(&super::CHARGE))
        .with_policy_settings(SUSPICION_SETTINGS)
        .with_batching(Batching {
            select_sql: pricing::PRICING,
            admit_sql: super::ADMIT_SQL,
            write_sql: super::WRITE_SQL,
            note_sql: super::NOTE_SQL,
            write_alone_sql: super::WRITE_ALONE_SQL,
        });

    fn read(input: &Input<'_>) -> Result<Self, Error> {
        Fields::read(input.body, |fields| {
            let amount = fields.money();
            let payment_method = fields.text("payment_method", TEXT_MAX).and_then(|token| {
                match input.host.processor.check_payment_method(&token) {
                    Ok(()) => Some(token),
                    Err(detail) => {
                        fields.error("payment_method", detail);
                        None
                    }
                }
            });
            let capture = fields.boolean_or("capture", true);
            let description = fields.optional_text("description", TEXT_MAX);
            let reference = fields.optional_text("reference", REFERENCE_MAX);
            let metadata = fields.metadata();
            let amount = amount?;
            Some(Self {
                amount,
                currency: amount.currency(),
                payment_method: payment_method?,
                capture,
                description,
                reference,
                metadata,
            })
        })
    }
}

#[async_trait]
impl ExternalOperation for CreateCharge {
    /// The merchant's price at the time of the first claim.
    type Reservation = Pricing;
    type Outcome = Authorization;

    /// Errors, in the order checked: `validation_failed` (texts, or a withdrawn currency; nothing is kept of the
    /// request) and, if the policy refuses suspected duplicates, `duplicate_suspected`, `duplicate_in_progress`.
    ///
    /// Locks: with that policy, the fields that make charges alike.
    fn reserve(&self, conn: &mut PgConnection, context: &Context<'_>) -> Result<Pricing, Error> {
        self.texts().check()?;
        let in_use = self.amount.currency().check_in_use(context.claimed_at());
        in_use.map_err(|withdrawn| Error::field("/currency", withdrawn.to_string()))?;
        if !self.refuses_suspected_duplicates(context.policy()) {
            return pricing::pricing(conn, context.merchant(), context.claimed_at());
        }
        if let Some(charge_id) = self.find_alike(conn, context)? {
            context.host().metrics.suspected_duplicates.with_label_values(&["rejected"]).inc();
            return Err(Error::DuplicateSuspected { charge_id });
        }
        // The other charge may still fail, so this one can't be refused for good.
        if self.is_alike_in_progress(conn, context)? {
            return Err(Error::DuplicateInProgress);
        }
        pricing::pricing(conn, context.merchant(), context.claimed_at())
    }

    fn resume(&self, conn: &mut PgConnection, context: &Context<'_>) -> Result<Pricing, Error> {
        pricing::pricing(conn, context.merchant(), context.claimed_at())
    }

    /// A final refusal is a decline. If less than the amount is approved, or the capture is refused, the authorization
    /// is voided and the charge declined.
    async fn call_processor(&self, context: &Context<'_>, _: &Pricing) -> Result<Authorization, Error> {
        let charge_id = ChargeId(context.resource_id()?);
        let call = host::processor_call(context, "authorize", charge_id);
        let capture = self.capture.then(|| host::processor_call(context, "capture", charge_id));
        let processor = &context.host().processor;
        let authorized =
            processor.authorize(&call, self.amount, &self.payment_method, capture.as_ref()).await;
        let mut authorization = match or_refusal(authorized)? {
            Ok(authorization) => authorization,
            // There is no authorization, so the call's key stands for it.
            Err(refusal) => Authorization { id: call.key, decision: declined(&refusal.code) },
        };
        let refused = match (&authorization.decision, capture) {
            (Decision::PartiallyApproved, _) => Some(super::PARTIAL_APPROVAL.to_owned()),
            (Decision::Approved, Some(capture)) => {
                let captured = processor.capture(&capture, &authorization.id, self.amount).await;
                or_refusal(captured)?.err().map(|refusal| refusal.code)
            }
            _ => None,
        };
        if let Some(code) = refused {
            let void = host::processor_call(context, "void", charge_id);
            if let Err(refusal) = or_refusal(processor.void(&void, &authorization.id).await)?
                && !refusal.is_nothing_held()
            {
                // The money is held or taken: that can't be called a decline, and is for people to find out.
                return Err(ProcessorError::Rejected { code: refusal.code }.into());
            }
            authorization.decision = declined(&code);
        }
        Ok(authorization)
    }

    fn commit(
        &self,
        conn: &mut PgConnection,
        context: &Context<'_>,
        pricing: &Pricing,
        authorization: &Authorization,
    ) -> Result<Commit, Error> {
        let (effects, reply) = self.written_for(context, *pricing, authorization)?;
        if !effects["alike"].is_null() {
            // The statement that writes the effects doesn't wait for this lock.
            self.lock_alike(conn, context)?;
        }
        Ok(Commit::Effects(effects, reply))
    }
}

impl BatchedOperation for CreateCharge {
    /// A charge reserves nothing, since the processor's decision creates it. But only a reservation can
    /// refuse a suspected duplicate, a text, or a currency that was withdrawn, in time.
    fn needs_reservation(&self, policy: &Policy) -> bool {
        self.amount.currency().is_limited_in_time()
            || self.refuses_suspected_duplicates(policy)
            || !self.texts().are_fine()
    }

    fn reservation_from(&self, read: Option<serde_json::Value>) -> Result<Pricing, Error> {
        pricing::pricing_from_json(read.unwrap_or_default())
    }

    fn effects(
        &self,
        context: &Context<'_>,
        pricing: &Pricing,
        authorization: &Authorization,
    ) -> Result<(Effects, Reply), Error> {
        self.written_for(context, *pricing, authorization)
    }

    /// Names the charge of which this one is a suspected duplicate.
    fn note(&self, context: &Context<'_>, reply: Reply, found: serde_json::Value) -> Reply {
        let Ok(other) = serde_json::from_value(found) else { return reply };
        context.host().metrics.suspected_duplicates.with_label_values(&["reported"]).inc();
        reply.note(SUSPECTED_DUPLICATE_OF, ChargeId(other).to_string())
    }
}

impl CreateCharge {
    /// Builds the charge, its journal entry, its event and the answer from the processor's decision.
    fn written_for(
        &self,
        context: &Context<'_>,
        pricing: Pricing,
        authorization: &Authorization,
    ) -> Result<(Effects, Reply), Error> {
        let id = ChargeId(context.resource_id()?);
        let mut row = ChargeRow {
            merchant_id: context.merchant(),
            id,
            status: ChargeStatus::Processing.as_str().to_owned(),
            currency: self.amount.currency().code().to_owned(),
            amount: self.amount.amount(),
            amount_captured: Decimal::ZERO,
            amount_refunded: Decimal::ZERO,
            amount_refund_pending: Decimal::ZERO,
            fee: Decimal::ZERO,
            payment_method: self.payment_method.clone(),
            capture: self.capture,
            in_flight: None,
            description: self.description.clone(),
            reference: self.reference.clone(),
            metadata: serde_json::to_value(&self.metadata).map_err(Error::internal)?,
            failure_code: None,
            failure_decline_code: None,
            failure_message: None,
            authorization_id: authorization.id.clone(),
            created_at: context.claimed_at(),
            captured_at: None,
            canceled_at: None,
        };
        let mut entry = None;
        let event = match &authorization.decision {
            Decision::PartiallyApproved => {
                return Err(Error::internal("a charge of less than its amount can't be written"));
            }
            Decision::Declined(decline) => {
                let error = row.decline(decline);
                let (_, effects) = row.to_effects(EventType::ChargeFailed, None)?;
                // Not an `Err`: the failed charge must be stored, together with this answer.
                return Ok((effects, context.problem(&error)?));
            }
            Decision::Pending => EventType::ChargeProcessing,
            Decision::Approved if self.capture => {
                entry = Some(row.mark_captured(pricing, self.amount, context.now())?);
                EventType::ChargeSucceeded
            }
            Decision::Approved => {
                row.set_status(ChargeStatus::RequiresCapture);
                EventType::ChargeAuthorized
            }
        };
        let (charge, mut effects) = row.to_effects(event, entry.as_ref())?;
        if self.is_suspicious(context.policy()) {
            effects["alike"] = json!({"name": self.alike(), "since": Self::alike_since(context)});
        }
        let reply = Reply::json(StatusCode::CREATED, &charge)?
            .header(KeptHeader::Location, format!("/v1/charges/{id}"));
        Ok((effects, reply))
    }

    fn texts(&self) -> Texts {
        Texts::default()
            .name("/payment_method", Some(&self.payment_method))
            .name("/reference", self.reference.as_deref())
            .lines("/description", self.description.as_deref())
    }

    fn refuses_suspected_duplicates(&self, policy: &Policy) -> bool {
        self.is_suspicious(policy) && policy.own.word(ON_SUSPECTED_DUPLICATE) == REJECT
    }

    /// Whether this charge can look like a duplicate. Two charges without a reference can't: a customer may
    /// well buy the same thing twice.
    fn is_suspicious(&self, policy: &Policy) -> bool {
        self.reference.is_some() && policy.own.number(SUSPICION_WINDOW_SECONDS) > 0
    }

    /// What makes charges of a merchant alike, for a lock: two that aren't alike may share it.
    fn alike(&self) -> String {
        let reference = self.reference.as_deref().unwrap_or_default();
        format!("{reference} {} {}", self.amount, self.payment_method)
    }

    /// The lowest id that a charge within the window of suspicion can have.
    fn alike_since(context: &Context<'_>) -> Uuid {
        let window = Duration::seconds(context.policy().own.number(SUSPICION_WINDOW_SECONDS).into());
        lowest_id((context.now() - window).timestamp_millis())
    }

    /// Locks what makes charges alike until the transaction ends, so that of two such concurrent charges one sees the other.
    fn lock_alike(&self, conn: &mut PgConnection, context: &Context<'_>) -> Result<(), Error> {
        statement::<()>(concat!("SELECT pg_advisory_xact_lock(", alike_lock!("{}", "{}"), ")"))
            .bind::<Text, _>(self.alike())
            .bind::<SqlUuid, _>(context.merchant())
            .execute(conn)?;
        Ok(())
    }

    /// Finds the latest charge that looks like this one and hasn't failed or been canceled.
    ///
    /// Locks: the fields that make charges alike.
    fn find_alike(&self, conn: &mut PgConnection, context: &Context<'_>) -> Result<Option<ChargeId>, Error> {
        self.lock_alike(conn, context)?;
        let found = statement::<Nullable<SqlUuid>>("SELECT charge_alike({}, {}, {}, {}, {}, {}, {})")
            .bind::<SqlUuid, _>(context.merchant())
            .bind::<SqlUuid, _>(context.resource_id()?)
            .bind::<SqlUuid, _>(Self::alike_since(context))
            .bind::<Text, _>(self.reference.as_deref().unwrap_or_default())
            .bind::<Text, _>(self.amount.currency().code())
            .bind::<Numeric, _>(self.amount.amount())
            .bind::<Text, _>(&self.payment_method)
            .get_result::<Option<Uuid>>(conn)?;
        Ok(found.map(ChargeId))
    }

    /// Whether a charge that looks like this one is being created right now, so that it isn't stored yet.
    fn is_alike_in_progress(&self, conn: &mut PgConnection, context: &Context<'_>) -> Result<bool, Error> {
        let window =
            std::time::Duration::from_secs(context.policy().own.number(SUSPICION_WINDOW_SECONDS).into());
        let others = context.others_in_progress(conn, Self::DESCRIPTOR.name, window)?;
        Ok(others.iter().any(|body| {
            let other = parse_json(body).and_then(|body| {
                Self::read(&Input {
                    pattern: Self::DESCRIPTOR.path,
                    path: Self::DESCRIPTOR.path,
                    query: "",
                    body: &body,
                    host: context.host(),
                })
            });
            other.is_ok_and(|other| {
                other.reference == self.reference
                    && other.amount == self.amount
                    && other.payment_method == self.payment_method
            })
        }))
    }
}

fn declined(code: &str) -> Decision {
    Decision::Declined(Decline::new(code))
}

problems!(CreateProblems, mutating: CardDeclined, InsufficientFunds, DuplicateSuspected, DuplicateInProgress, RequestAbandoned, ProcessorUnavailable);

/// Create a charge
///
/// Authorizes a payment and, unless `capture` is false, captures it. Oncepay creates the charge once per
/// `Idempotency-Key`, however often the client sends the request: a retry gets the first answer again, byte
/// for byte, with `Idempotent-Replayed: true`. After a 503, send the same request again: it resumes the same
/// charge under the same id. A decline is final for its key.
///
/// A charge with a `reference` is a suspected duplicate if another charge with the same reference, amount,
/// currency and payment method was created a short time ago under another key. `Suspected-Duplicate-Of` then
/// names the other charge. If the policy says so, the new charge is refused with `duplicate_suspected`
/// instead.
///
/// A currency that ISO 4217 has withdrawn is refused with `validation_failed` from the day of its withdrawal (UTC) on.
/// Charges made before live on: they can be captured, canceled, refunded and disputed, and retries get the first answer.
#[utoipa::path(
    operation_id = "charges.create",
    tag = "Charges",
    request_body = CreateCharge,
    responses(
        (status = 201, description = "The charge was created. `status` is `succeeded`, `requires_capture` with `capture: false`, or `processing` if the processor decides later.",
            body = Charge, headers(
                ("Location" = String, description = "Path of the charge"),
                ("Suspected-Duplicate-Of" = String, description = "Id of another charge with the same amount, currency, payment method and reference, created a short time ago under another key. Not sent on replays."))),
        CreateProblems
    ),
)]
#[post("/v1/charges")]
pub async fn create(
    engine: web::Data<Engine>,
    request: IdempotentRequest<CreateCharge>,
) -> Result<HttpResponse, Error> {
    engine.run_batched(request).await
}
