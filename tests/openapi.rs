//! The OpenAPI document: current, complete, and true to the routes.

use std::collections::BTreeSet;
use std::io::Read;

use oncepay::events::EventType;
use serde_json::{Value, json};

use crate::support::*;

/// Every operation with its method and path.
fn operations(document: &Value) -> Vec<(String, String, Value)> {
    let mut operations = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            operations.push((method.clone(), path.clone(), operation.clone()));
        }
    }
    operations
}

#[test]
fn the_checked_in_document_is_current() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi/openapi.json");
    let checked_in = std::fs::read_to_string(path).unwrap_or_default();
    let current = format!("{}\n", oncepay::server::document().to_pretty_json().unwrap());
    // A document with more than the routes means that a route was forgotten, and renewing it would hide that.
    let known: Value = serde_json::from_str(&checked_in).unwrap_or_else(|_| json!({"paths": {}}));
    let gone =
        operations(&known).into_iter().find(|(method, path, _)| document()["paths"][path][method].is_null());
    if let Some((method, path, _)) = gone {
        panic!(
            "{} {path} is in openapi/openapi.json and has no route. Add its handler to routes() in \
             src/server/routes.rs; or if it's meant to be gone, renew the document: \
             cargo run -- openapi > openapi/openapi.json",
            method.to_uppercase()
        );
    }
    assert!(
        checked_in == current,
        "openapi/openapi.json is stale. Renew it: cargo run -- openapi > openapi/openapi.json"
    );
}

#[test]
fn every_operation_is_described_in_full() {
    let document = resolved_document();
    assert_eq!(document["openapi"], "3.1.0");
    let operations = operations(document);
    assert!(operations.len() >= 4);
    for (method, path, operation) in operations {
        let name = format!("{method} {path}");
        for text in ["operationId", "summary", "description"] {
            assert!(operation[text].as_str().is_some_and(|text| !text.is_empty()), "{name} has no {text}");
        }
        assert!(!operation["tags"].as_array().unwrap().is_empty(), "{name} has no tag");
        let scheme = match path.as_str() {
            ACQUIRER_WEBHOOK => "webhook_signature",
            path if path.starts_with("/v1/operator") => "operator_key",
            _ => "api_key",
        };
        assert_eq!(operation["security"][0][scheme], serde_json::json!([]), "{name}");
        for (status, response) in operation["responses"].as_object().unwrap() {
            assert!(!response["description"].as_str().unwrap().is_empty(), "{name} {status}");
            assert!(response["content"].is_object() || status == "304", "{name} {status}");
            for (media_type, content) in response["content"].as_object().into_iter().flatten() {
                let in_place = content["example"].is_object() || content["examples"].is_object();
                let by_schema = has_example(&content["schema"]);
                assert!(in_place || by_schema, "{name} {status} {media_type} has no example");
            }
        }
        if let Some(body) = operation.get("requestBody") {
            for (media_type, content) in body["content"].as_object().unwrap() {
                assert!(has_example(&content["schema"]), "{name} {media_type} has no example");
            }
        }
    }
}

/// Whether the referenced schema, or each of its properties, has an example.
fn has_example(schema: &Value) -> bool {
    let schema = target(schema);
    if let Some(parts) = schema["allOf"].as_array() {
        return parts.iter().all(has_example);
    }
    !schema["example"].is_null()
        || schema["examples"].is_array()
        || schema["properties"].as_object().is_some_and(|properties| {
            properties.iter().all(|(_, property)| {
                property.get("example").is_some()
                    || property["examples"].is_array()
                    || property["items"]["$ref"].is_string()
                    || property["$ref"].is_string()
                    || property["enum"].is_array()
                    || property["oneOf"].is_array()
            })
        })
}

#[test]
fn every_mutating_operation_takes_an_idempotency_key_and_says_so() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let merchant = app.client.as_merchant(&database.merchant());
    let operator = app.client.with_key(&database.operator_key());
    for (method, path, operation) in operations(resolved_document()) {
        let client = if path.starts_with("/v1/operator") { &operator } else { &merchant };
        if method == "get" {
            continue;
        }
        let parameters = operation["parameters"].as_array().unwrap();
        let name_of_key = if path == ACQUIRER_WEBHOOK { "webhook-id" } else { "Idempotency-Key" };
        let key = parameters.iter().find(|parameter| parameter["name"] == name_of_key);
        assert_eq!(key.unwrap_or_else(|| panic!("{method} {path} hides it"))["required"], true);
        assert!(parameters.iter().any(|parameter| parameter["name"] == "Prefer"), "{method} {path}");
        let published = &operation["x-idempotency"];
        assert!(published["policy"]["ttl_seconds"].is_number(), "{method} {path}: {published}");
        let name = operation["operationId"].as_str().unwrap().trim_start_matches("operator.");
        assert_eq!(published["operation"], name);

        if path == ACQUIRER_WEBHOOK {
            app.client.request("POST", &path).send().expect_problem(401, "webhook_signature_invalid");
            continue;
        }
        let concrete: Vec<_> =
            path.split('/').map(|part| if part.starts_with('{') { "some_id" } else { part }).collect();
        let request = client.request(&method.to_uppercase(), &concrete.join("/"));
        let refused = request.json(&serde_json::json!({})).send();
        refused.expect_problem(400, "idempotency_key_missing");
    }
}

#[test]
fn the_catalogue_of_events_has_an_example_of_each() {
    let document = resolved_document();
    let webhooks = document["webhooks"].as_object().unwrap();
    assert_eq!(webhooks.len(), EventType::ALL.len());
    let names: Vec<_> = EventType::names().collect();
    assert_eq!(document["components"]["schemas"]["EventType"]["enum"], json!(names));
    for kind in EventType::ALL {
        let message = &webhooks[kind.as_str()]["post"]["requestBody"]["content"]["application/json"];
        let (schema, example) = (&message["schema"]["properties"], &message["example"]);
        assert_eq!(example["type"], kind.as_str());
        let members = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        let mut usual = members(schema);
        usual.retain(|name| name != "data_omitted");
        assert_eq!(members(example), usual, "{kind:?}");
        // Of the object that the schema names, with all of its members but secrets.
        assert!(schema["data"]["anyOf"][0]["$ref"].is_string(), "{kind:?}");
        let object = target(&schema["data"]["anyOf"][0]);
        let data = members(&example["data"]);
        let known = members(&object["properties"]);
        assert!(data.iter().all(|name| known.contains(name)), "{kind:?}: {data:?}");
        let required = object["required"].as_array().unwrap().iter().map(|name| name.as_str().unwrap());
        for name in required {
            assert!(example["data"].get(name).is_some(), "{kind:?} has no {name}");
        }
        assert_eq!(mismatch("", example, &message["schema"]), None, "{kind:?}");
        assert_eq!(mismatch("/data", &example["data"], object), None, "{kind:?}");
        assert!(example["data"].get("secret").is_none());
    }
}

#[test]
fn what_is_one_of_a_few_words_is_the_same_in_the_database() {
    let database = TestDatabase::new();
    for (schema, property, constraint) in [
        ("Delivery", "status", "webhook_deliveries_state"),
        ("Dispute", "status", "disputes_status"),
        ("AcquirerEvent", "state", "acquirer_events_state"),
        ("KeyStatus", "recovery_point", "idempotency_keys_recovery_point"),
        ("Payout", "status", "payouts_status"),
        ("Refund", "status", "refunds_status"),
        ("WebhookEndpoint", "status", "webhook_endpoints_status"),
    ] {
        let rule = database.text(&format!(
            "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = '{constraint}' AND conparentid = 0"
        ));
        // The words are the texts in the list: `status = ANY (ARRAY['open'::text, …])`.
        let list = rule.split_once("ARRAY[").unwrap().1.split_once(']').unwrap().0;
        let stored: BTreeSet<_> = list.split('\'').skip(1).step_by(2).collect();
        let words = document()["components"]["schemas"][schema]["properties"][property]["enum"].as_array();
        let words: BTreeSet<_> = words.unwrap().iter().map(|word| word.as_str().unwrap()).collect();
        assert_eq!(words, stored, "{schema}.{property}");
    }
}

#[test]
fn the_document_is_compressed_for_whoever_takes_it_so() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let get = |accepted: &str| {
        app.client.request("GET", "/openapi.json").header("Accept-Encoding", accepted).send().expect(200)
    };
    let plain = app.client.get("/openapi.json").expect(200);
    for accepted in ["identity", "br", "gzip;q=0", "gzip;q=0.5, identity"] {
        assert_eq!(get(accepted).body, plain.body, "{accepted}");
    }
    for accepted in ["gzip", "br;q=1.0, gzip;q=0.8, *;q=0.1"] {
        let compressed = get(accepted);
        assert_eq!(compressed.header("Content-Encoding"), Some("gzip"), "{accepted}");
        assert!(compressed.body.len() * 5 < plain.body.len(), "{}", compressed.body.len());
        let mut document = Vec::new();
        flate2::read::GzDecoder::new(&compressed.body[..]).read_to_end(&mut document).unwrap();
        assert!(document == plain.body, "{accepted}");
    }
    for answer in [&plain, &get("gzip")] {
        assert_eq!(answer.header("Content-Type"), Some("application/json"));
        assert_eq!(answer.header("Vary"), Some("accept-encoding"));
    }
    assert_eq!(plain.header("Content-Encoding"), None);

    // Both are of the policies that hold now, and nothing else is compressed.
    app.set_policy(&database, "ttl_seconds = 7200");
    let mut document = String::new();
    flate2::read::GzDecoder::new(&get("gzip").body[..]).read_to_string(&mut document).unwrap();
    let document: Value = serde_json::from_str(&document).unwrap();
    assert_eq!(document["paths"]["/v1/charges"]["post"]["x-idempotency"]["policy"]["ttl_seconds"], 7200);
    let merchant = app.client.as_merchant(&database.merchant());
    let list = merchant.request("GET", "/v1/charges").header("Accept-Encoding", "gzip").send().expect(200);
    assert_eq!((list.header("Content-Encoding"), list.header("Vary")), (None, None));
}

#[test]
fn unknown_fields_are_refused_by_the_schemas_too() {
    for (name, schema) in document()["components"]["schemas"].as_object().unwrap() {
        if name.starts_with("Create") || name.starts_with("Update") {
            assert_eq!(schema["additionalProperties"], false, "{name}");
        }
    }
}
