//! Objects that the database has lost, and those that their requests made when they came again.
//!
//! After a restore from a backup, or a failover to a standby that lagged, a client's retry is a first request to the
//! database and makes an object with another id. The processor recognizes the key of the call and does nothing again.
//! Its operation keeps the lost object as its reference, and its messages name that one. Without more, the two sides
//! would differ for good, and a message about the object would never take effect.
//!
//! The key of the call tells whose operation it is, since it derives from the client's key. So the copy of the
//! processor's books says of each operation to which object of ours it belongs (`object_id`), beside the `reference`
//! that the processor keeps.

use std::collections::{HashMap, HashSet};

use diesel::prelude::*;
use diesel::sql_types::{Array, Integer, Text, Uuid as SqlUuid};
use uuid::Uuid;

use crate::base::ids::{self, MerchantId};
use crate::error::Error;
use crate::idempotency::processor_key;
use crate::payments::charges;
use crate::storage::shape;
use crate::storage::sql::statement;

use super::differences::Difference;

/// Gives operations of lost objects to the objects that took their place, among those that the processor lacks
/// according to `differences`. Returns how many.
///
/// Reads all keys and all operations once, if the processor lacks anything.
pub fn assign(conn: &mut PgConnection, differences: &[Difference]) -> Result<usize, Error> {
    let mut kinds = HashMap::<(Uuid, Uuid), HashSet<&str>>::new();
    for difference in differences.iter().filter(|difference| difference.difference == "missing_at_acquirer") {
        if let (Some(merchant), Ok(object)) = (difference.merchant_id, ids::parse_any(&difference.reference))
        {
            kinds.entry((merchant, object)).or_default().insert(&difference.kind);
        }
    }
    if kinds.is_empty() {
        return Ok(0);
    }
    if shape::is_distributed() {
        // One merchant at a time: each has its node.
        let of: HashSet<Uuid> = kinds.keys().map(|(merchant, _)| *merchant).collect();
        let each = of.into_iter().map(|merchant| {
            let objects = kinds.keys().filter(|(of, _)| *of == merchant).map(|(_, object)| *object).collect();
            let keys = statement::<(SqlUuid, SqlUuid, Text, Integer)>(
                "SELECT merchant_id, resource_id, key, generation FROM idempotency_keys \
                 WHERE merchant_id = {} AND resource_id = ANY ({}) AND generation IS NOT NULL",
            )
            .bind::<SqlUuid, _>(merchant)
            .bind::<Array<SqlUuid>, _>(Vec::<Uuid>::clone(&objects))
            .load(conn)?;
            assign_calls(conn, Some(merchant), &kinds, keys)
        });
        return each.sum();
    }
    let (merchants, objects): (Vec<Uuid>, Vec<Uuid>) = kinds.keys().copied().unzip();
    // Without a generation, a key belongs to one claim and doesn't come again.
    let keys = statement::<(SqlUuid, SqlUuid, Text, Integer)>(
        "SELECT k.merchant_id, k.resource_id, k.key, k.generation \
         FROM idempotency_keys k JOIN unnest({}, {}) AS missing (merchant_id, object_id) \
             ON missing.merchant_id = k.merchant_id AND missing.object_id = k.resource_id \
         WHERE k.generation IS NOT NULL",
    )
    .bind::<Array<SqlUuid>, _>(merchants)
    .bind::<Array<SqlUuid>, _>(objects)
    .load(conn)?;
    assign_calls(conn, None, &kinds, keys)
}

/// The merchant, the object, the client's key and its generation.
type Key = (Uuid, Uuid, String, i32);

/// Gives operations to the objects of `keys`; all of `merchant`, if there's one.
fn assign_calls(
    conn: &mut PgConnection,
    merchant: Option<Uuid>,
    kinds: &HashMap<(Uuid, Uuid), HashSet<&str>>,
    keys: Vec<Key>,
) -> Result<usize, Error> {
    let mut calls = (Vec::new(), Vec::new(), Vec::new());
    for (merchant, object, key, generation) in keys {
        // A kind of operation is the name of its step.
        for kind in kinds.get(&(merchant, object)).into_iter().flatten() {
            calls.0.push(processor_key(MerchantId(merchant), &key, generation, kind));
            calls.1.push(merchant);
            calls.2.push(object);
        }
    }
    macro_rules! assign {
        ($of_merchant:literal) => {
            concat!(
                "UPDATE acquirer_operations o SET object_id = call.object_id \
                 FROM unnest({}, {}, {}) AS call (key, merchant_id, object_id) \
                 WHERE ",
                $of_merchant,
                " o.idempotency_key = call.key AND o.merchant_id = call.merchant_id AND o.object_id < call.object_id \
                 RETURNING o.id, o.reference, o.object_id",
            )
        };
    }
    let sql = if merchant.is_some() { assign!("o.merchant_id = {} AND") } else { assign!("") };
    let mut assign = statement::<(Text, Text, SqlUuid)>(sql)
        .bind::<Array<Text>, _>(calls.0)
        .bind::<Array<SqlUuid>, _>(calls.1)
        .bind::<Array<SqlUuid>, _>(calls.2);
    if let Some(merchant) = merchant {
        assign = assign.bind::<SqlUuid, _>(merchant);
    }
    let assigned = assign.load::<(String, String, Uuid)>(conn)?;
    for (operation_id, reference, object_id) in &assigned {
        let object_id = object_id.as_simple().to_string();
        log::warn!(operation_id, reference, object_id; "an operation of a lost object belongs to its retry");
    }
    Ok(assigned.len())
}

/// Finds the object that took the place of a lost one. Known as soon as the reconciliation has read the processor's
/// books: for a charge at once, for others when it has [assigned](assign) their operations.
pub fn successor(conn: &mut PgConnection, merchant: MerchantId, lost: Uuid) -> Result<Option<Uuid>, Error> {
    // Ids are in the order of time, so this reads only what is younger than the lost object.
    let assigned = statement::<SqlUuid>(
        "SELECT object_id FROM acquirer_operations \
         WHERE merchant_id = {} AND object_id > {} AND split_part(reference, '_', 2) = {} LIMIT 1",
    )
    .bind::<SqlUuid, _>(merchant)
    .bind::<SqlUuid, _>(lost)
    .bind::<Text, _>(lost.as_simple().to_string())
    .get_result::<Uuid>(conn)
    .optional()?;
    match assigned {
        Some(object) => Ok(Some(object)),
        None => Ok(charges::successor(conn, merchant, ids::ChargeId(lost))?.map(|charge| charge.0)),
    }
}
