//! Correcting entries by operators: some truths come by telephone.

use std::collections::HashMap;

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, post, web};
use diesel::prelude::*;
use rust_decimal::Decimal;
use utoipa::ToSchema;

use super::api::{Entry, Side, with_postings};
use super::corrections::{Correction, post_correction};
use super::{AccountKind, JournalEntry};
use crate::base::ids::{JournalEntryId, MerchantId};
use crate::base::money::{Currency, Money};
use crate::error::{Error, FieldError, violated_constraint};
use crate::host::{self, Caller, Context, Descriptor, Engine, Input, Oncepay};
use crate::idempotency::{IdempotentRequest, LocalOperation, Operation, Reply};
use crate::storage::schema::{journal_entries, merchants};
use crate::web::fields::{Fields, TEXT_MAX};
use crate::web::lists::List;
use crate::web::problems::problems;

/// Maximum number of lines in an entry.
const POSTINGS_MAX: usize = 100;
/// Maximum number of characters in a reference.
const REFERENCE_MAX: usize = 255;

/// Body of a correcting entry.
#[derive(Debug, ToSchema)]
#[schema(example = json!({
    "merchant_id": "mer_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b", "reference": "bank letter 2026-0147",
    "reason": "The bank returned a transfer that it had reported as paid.",
    "postings": [
        {"account_kind": "bank", "side": "debit", "amount": "100.00", "currency": "USD"},
        {"account_kind": "merchant_payable", "side": "credit", "amount": "100.00", "currency": "USD"}
    ]
}))]
#[serde(deny_unknown_fields)]
pub struct PostJournalEntry {
    /// Id of the merchant whose books are corrected.
    #[schema(value_type = String, min_length = 1, max_length = 500)]
    merchant_id: Option<MerchantId>,
    /// What the correction goes back to, such as a letter of the bank.
    #[schema(min_length = 1, max_length = 255)]
    reference: String,
    /// The reason, which the merchant sees.
    #[schema(min_length = 1, max_length = 500)]
    reason: String,
    /// The lines: debits and credits are equal in each currency.
    #[schema(min_items = 2, max_items = 100)]
    postings: Vec<NewPosting>,
}

/// A line of a correcting entry.
#[derive(Clone, Debug, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewPosting {
    /// Kind of the account.
    #[schema(value_type = String, example = "merchant_payable")]
    account_kind: AccountKind,
    /// Debit or credit.
    side: Side,
    /// Decimal string greater than zero, with at most as many decimals as the currency has.
    #[schema(value_type = String, pattern = r"^[0-9]{1,12}(\.[0-9]{1,4})?$", example = "100.00")]
    amount: Money,
    /// ISO 4217 code in upper case.
    #[schema(value_type = String, pattern = "^[A-Z]{3}$", example = "USD")]
    #[expect(dead_code, reason = "amount holds it too; it's here for the schema")]
    currency: Currency,
}

fn read_posting(fields: &mut Fields<'_>) -> Option<NewPosting> {
    let kinds = || AccountKind::ALL.iter().map(|kind| kind.as_str()).collect::<Vec<_>>().join(", ");
    let account_kind = fields.required_read("account_kind", |word| {
        let found = AccountKind::ALL.iter().find(|kind| kind.as_str() == word);
        found.copied().ok_or_else(|| format!("must be one of {}", kinds()))
    });
    let side = fields.required_read("side", |word| match word {
        "debit" => Ok(Side::Debit),
        "credit" => Ok(Side::Credit),
        _ => Err("must be debit or credit".to_owned()),
    });
    let amount = fields.money()?;
    Some(NewPosting { account_kind: account_kind?, side: side?, amount, currency: amount.currency() })
}

impl Operation for PostJournalEntry {
    type Host = Oncepay;

    const DESCRIPTOR: Descriptor =
        Descriptor::new("journal_entries.create", "POST", "/v1/operator/journal-entries", Caller::Operator);

    fn read(input: &Input<'_>) -> Result<Self, Error> {
        let entry = Fields::read(input.body, |fields| {
            let merchant_id = fields.id("merchant_id");
            let reference = fields.text("reference", REFERENCE_MAX);
            let reason = fields.text("reason", TEXT_MAX);
            let postings = fields.objects("postings", 2, POSTINGS_MAX, read_posting);
            Some(Self {
                merchant_id: merchant_id?,
                reference: reference?,
                reason: reason?,
                postings: postings?,
            })
        })?;
        let mut sums = HashMap::<Currency, Decimal>::new();
        for posting in &entry.postings {
            let amount = posting.amount.amount();
            let signed = if posting.side == Side::Debit { amount } else { -amount };
            *sums.entry(posting.amount.currency()).or_default() += signed;
        }
        match sums.into_iter().find(|(_, sum)| !sum.is_zero()) {
            None => Ok(entry),
            Some((currency, _)) => Err(Error::ValidationFailed(vec![FieldError {
                pointer: "/postings".to_owned(),
                detail: format!("must have equal debits and credits in {currency}"),
            }])),
        }
    }
}

impl LocalOperation for PostJournalEntry {
    /// Locks: those of the function `ledger_post`.
    fn execute(&self, conn: &mut PgConnection, context: &Context<'_>) -> Result<Reply, Error> {
        let merchant = self.merchant_id.ok_or(Error::MerchantNotFound)?;
        let exists = diesel::select(diesel::dsl::exists(merchants::table.find(merchant)));
        if !exists.get_result::<bool>(conn)? {
            return Err(Error::MerchantNotFound);
        }
        let id = JournalEntryId::at(context.now());
        let entry =
            self.postings.iter().fold(JournalEntry::new(format!("correction:{id}")), |entry, posting| {
                match posting.side {
                    Side::Debit => entry.debit(posting.account_kind, posting.amount),
                    Side::Credit => entry.credit(posting.account_kind, posting.amount),
                }
            });
        let correction = Correction { corrects: None, reference: &self.reference, reason: &self.reason };
        post_correction(conn, merchant, Some(id), &entry, &correction).map_err(|error| {
            match (violated_constraint(&error), self.debited_payable()) {
                (Some("merchant_payable_covered"), Some(currency)) => Error::InsufficientBalance { currency },
                _ => error.into(),
            }
        })?;
        let name = Self::DESCRIPTOR.name;
        let subject = format!("{merchant}/{id}");
        host::record_action(conn, context.actor(), name, &subject, Some(&self.reason))?;
        let row = journal_entries::table
            .find((merchant, id))
            .select((journal_entries::id, journal_entries::source, journal_entries::created_at))
            .first(conn)?;
        let list: List<Entry> = with_postings(conn, merchant, List { data: vec![row], has_more: false })?;
        Ok(Reply::json(StatusCode::CREATED, &list.data.first())?)
    }
}

impl PostJournalEntry {
    /// The first currency in which the entry takes from the merchant.
    fn debited_payable(&self) -> Option<Currency> {
        let takes = |posting: &&NewPosting| {
            posting.account_kind == AccountKind::MerchantPayable && posting.side == Side::Debit
        };
        self.postings.iter().find(takes).map(|posting| posting.amount.currency())
    }
}

problems!(PostProblems, operating_mutating: MerchantNotFound, InsufficientBalance);

/// Post a correcting entry
///
/// Books what the service can't learn of by itself, such as what a bank or the processor says by telephone. The merchant
/// sees the entry, its reference and its reason in its journal. Entries never change: correct a wrong one by
/// another. An entry can't take more from `merchant_payable` than there is; what a merchant owes is booked through
/// `disputes_held`.
#[utoipa::path(
    operation_id = "operator.journal_entries.create",
    tag = "Operators",
    request_body = PostJournalEntry,
    responses((status = 201, description = "The entry was posted.", body = Entry), PostProblems),
)]
#[post("/v1/operator/journal-entries")]
pub async fn post(
    engine: web::Data<Engine>,
    request: IdempotentRequest<PostJournalEntry>,
) -> Result<HttpResponse, Error> {
    engine.run_local(request).await
}
