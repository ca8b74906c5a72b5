//! The bounds that the OpenAPI document names are those by which the service decides: a value on a bound is taken, one
//! beyond it is refused, and so is `null` where the document doesn't name it.

use oncepay::error::Code;
use serde_json::{Value, json};

use crate::support::*;

/// Values that are right for a schema, and values that aren't.
#[derive(Default)]
struct Samples {
    right: Vec<Value>,
    wrong: Vec<Value>,
}

/// Samples of texts for the patterns of the document.
fn of_pattern(pattern: &str) -> (&'static [&'static str], &'static [&'static str]) {
    match pattern {
        "^[a-z]+_[0-9a-f]{32}$" => (
            &["ch_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b", "any_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b"],
            &["", "ch_", "_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b", "\0_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b"],
        ),
        r"^je_[0-9a-f]{32}\.[0-9]{1,4}$" => (
            &["je_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b.1"],
            &["", "je_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b", "je_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b.-1"],
        ),
        "^(now|evt_[0-9a-f]{32}|c1_[A-Za-z0-9_-]{38})?$" => (
            &["", "now", "c1_AAAAAQAAAAAAAAMgAAAAAAAAAAAAAAAAAAAAAA"],
            &["later", "ch_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b", "c1_AAAA"],
        ),
        r"^[0-9]{1,12}(\.[0-9]{1,4})?$" => (
            &["1", "999999999999", "0.0001"],
            &["", "-1", "+1", "1.", ".5", "1e3", "1000000000000", "0.00001"],
        ),
        r"^(0(\.[0-9]{1,5})?|1(\.0{1,5})?)$" => {
            (&["0", "1", "0.00001", "1.00000"], &["", "-1", "1.1", "0.000001"])
        }
        r"^([0-9]{1,6}(\.[0-9]{1,4})?|1000000(\.0{1,4})?)$" => {
            (&["0", "0.0001", "1000000.0000"], &["", "-1", "1000000.01", "1000001", "0.00001"])
        }
        other => panic!("this test has no samples for {other}"),
    }
}

/// The prefix of the ids that a pattern stands for.
fn id_prefix(pattern: &str) -> Option<&str> {
    let prefix = pattern.strip_prefix('^')?.strip_suffix("[0-9a-f]{32}$")?;
    prefix.strip_suffix('_')?.bytes().all(|byte| byte.is_ascii_lowercase()).then_some(prefix)
}

fn samples(name: &str, schema: &Value) -> Samples {
    let has_type = |wanted: &str| match &schema["type"] {
        Value::Array(kinds) => kinds.iter().any(|kind| kind == wanted),
        kind => kind == wanted,
    };
    let mut samples = Samples::default();
    if has_type("null") { &mut samples.right } else { &mut samples.wrong }.push(Value::Null);
    let Samples { right, wrong } = &mut samples;
    let texts = |texts: &[&str]| texts.iter().map(|text| json!(text)).collect::<Vec<_>>();
    if let Some(words) = schema["enum"].as_array() {
        right.extend(words.iter().cloned());
        wrong.extend([json!("nonsense"), json!("")]);
    } else if let Some(prefix) = schema["pattern"].as_str().and_then(id_prefix) {
        let id = |prefix: &str| json!(format!("{prefix}0193b2f0c1d87a3e9a4b5c6d7e8f9a0b"));
        right.push(id(prefix));
        wrong.extend([json!(""), json!(prefix), id("x_"), id(&prefix.to_uppercase())]);
    } else if schema["pattern"].is_string() && schema["maxLength"].is_null() {
        let (matching, other) = of_pattern(schema["pattern"].as_str().unwrap());
        if name == "amount" {
            assert!(schema["not"].is_object(), "the schema allows an amount of zero");
            wrong.extend([json!("0"), json!("0.00")]);
        }
        right.extend(texts(matching));
        wrong.extend(texts(other));
    } else if schema["format"] == "date-time" {
        right.extend(texts(&["2999-01-31T09:30:00Z", "2999-01-31T09:30:00.123+01:00"]));
        wrong.extend(texts(&["", "yesterday", "2999-01-31"]));
    } else if schema["format"] == "uri" {
        let longest = schema["maxLength"].as_u64().unwrap() as usize;
        let url =
            |length| format!("https://shop.example/{:a<1$}", "", length - "https://shop.example/".len());
        right.push(url(longest).into());
        wrong.extend([
            url(longest + 1).into(),
            json!(""),
            json!("shop.example"),
            json!("https://shop.example/#a"),
        ]);
    } else if has_type("string") {
        let bound =
            |bound: &str| schema[bound].as_u64().unwrap_or_else(|| panic!("{name} has no {bound}")) as usize;
        // A token of a payment method has to be a known one, and the operation that of the path.
        if !["payment_method", "operation"].contains(&name) {
            right.extend([bound("minLength"), bound("maxLength")].map(|length| json!("ä".repeat(length))));
        }
        wrong
            .extend([bound("minLength") - 1, bound("maxLength") + 1].map(|length| json!("ä".repeat(length))));
        assert!(schema["pattern"].as_str().is_some_and(|pattern| pattern.starts_with(r"^[^\x00")), "{name}");
        wrong.push(json!("a\0b"));
    } else if has_type("integer") {
        let bound = |bound: &str| schema[bound].as_i64().unwrap_or_else(|| panic!("{name} has no {bound}"));
        right.extend([json!(bound("minimum")), json!(bound("maximum")), json!(bound("maximum") as f64)]);
        if bound("minimum") == 0 {
            right.push(json!(-0.0));
        }
        wrong.extend([json!(bound("minimum") - 1), json!(bound("maximum") + 1), json!(1.5), json!("1")]);
    } else if has_type("boolean") {
        right.extend([json!(true), json!(false)]);
        wrong.push(json!("true"));
    } else if has_type("array") {
        wrong.push(json!([]));
        if let Some(words) = target(&schema["items"])["enum"].as_array() {
            right.push(json!(words));
            wrong.extend([json!(["nonsense"]), json!([words[0], words[0]])]);
        }
    } else if let Some(most) = schema["maxProperties"].as_u64() {
        let longest = |schema: &Value| schema["maxLength"].as_u64().unwrap() as usize;
        let (name, value) = (longest(&schema["propertyNames"]), longest(&schema["additionalProperties"]));
        let entries =
            |number: u64| (0..number).map(|number| (number.to_string(), json!(""))).collect::<Value>();
        let entry = |name: usize, value: usize| json!({"n".repeat(name): "v".repeat(value)});
        right.extend([entries(most), entry(name, value), entry(1, 0)]);
        wrong.extend([entries(most + 1), entry(name + 1, value), entry(0, value), entry(name, value + 1)]);
    }
    samples
}

/// The properties of a request's schema, with those of its lists' items, and the pointers to them.
fn properties(schema: &'static Value) -> Vec<(String, &'static str, &'static Value)> {
    let mut found = Vec::new();
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let property = target(property);
        found.push((format!("/{name}"), name.as_str(), property));
        let items = properties(target(&property["items"])).into_iter();
        found
            .extend(items.map(|(pointer, of_item, schema)| (format!("/{name}/0{pointer}"), of_item, schema)));
    }
    found
}

/// A body with `value` at `pointer`.
fn body_with(pointer: &str, value: &Value) -> Value {
    pointer.split('/').skip(1).collect::<Vec<_>>().into_iter().rev().fold(value.clone(), |value, part| {
        match part {
            "0" => json!([value, value]),
            name => json!({name: value}),
        }
    })
}

#[test]
fn a_body_is_refused_where_its_schema_says_so_and_nowhere_else() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let merchant = app.client.as_merchant(&database.merchant());
    let operator = app.client.with_key(&database.operator_key());
    let mut checked = 0;
    for (pattern, item) in resolved_document()["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let client = if pattern.starts_with("/v1/operator") { &operator } else { &merchant };
            let path = pattern.replace("{operation}", "charges.create");
            let parts = path.split('/').map(|part| if part.starts_with('{') { "some_id" } else { part });
            let path = parts.collect::<Vec<_>>().join("/");
            let schema = target(&operation["requestBody"]["content"]["application/json"]["schema"]);
            for (pointer, name, schema) in properties(schema) {
                // The processor's own texts are read leniently.
                if pattern == ACQUIRER_WEBHOOK && name != "type" {
                    continue;
                }
                let Samples { right, wrong } = samples(name, schema);
                let cases =
                    right.iter().map(|value| (value, false)).chain(wrong.iter().map(|value| (value, true)));
                for (value, is_wrong) in cases {
                    let body = body_with(&pointer, value);
                    let answer = client.send(&method.to_uppercase(), &path, &fresh_key(), &body);
                    assert!(answer.status < 500, "{}", answer.text());
                    let refused =
                        if answer.code() == "validation_failed" { answer.pointers() } else { Vec::new() };
                    let below = format!("{pointer}/");
                    let is_refused =
                        refused.iter().any(|found| *found == pointer || found.starts_with(&below));
                    // What is wrong with an item is its own case.
                    if is_wrong || !value.is_array() {
                        assert_eq!(is_refused, is_wrong, "{method} {path} {pointer}: {value}: {refused:?}");
                    }
                    checked += 1;
                }
            }
        }
    }
    assert!(checked > 300, "{checked}");
}

/// True for a parameter whose form isn't a bound: an age or a time, and the id of a key that must exist.
fn is_free(parameter: &Value) -> bool {
    let pattern = parameter["schema"]["pattern"].as_str().unwrap_or_default();
    parameter["name"] == "older_than" || pattern.starts_with("^mer_") && pattern.contains('/')
}

#[test]
fn a_query_is_refused_where_its_schema_says_so_and_nowhere_else() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let merchant = app.client.as_merchant(&database.merchant());
    let operator = app.client.with_key(&database.operator_key());
    let mut checked = 0;
    for (pattern, item) in resolved_document()["paths"].as_object().unwrap() {
        let client = if pattern.starts_with("/v1/operator") { &operator } else { &merchant };
        let parts = pattern.split('/').map(|part| if part.starts_with('{') { "some_id" } else { part });
        let path = parts.collect::<Vec<_>>().join("/");
        for parameter in item["get"]["parameters"].as_array().into_iter().flatten() {
            let name = parameter["name"].as_str().unwrap();
            if parameter["in"] != "query" || is_free(parameter) {
                continue;
            }
            let Samples { right, wrong } = samples(name, target(&parameter["schema"]));
            let cases =
                right.iter().map(|value| (value, false)).chain(wrong.iter().map(|value| (value, true)));
            for (value, is_wrong) in cases.filter(|(value, _)| !value.is_null()) {
                let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                // An integer in a query is a text of digits.
                let is_whole = value.as_f64().is_some_and(|number| number.fract() == 0.0);
                if parameter["schema"]["type"] == "integer"
                    && (value.is_string() || value.is_f64() && is_whole)
                {
                    continue;
                }
                let query: String = url::form_urlencoded::byte_serialize(text.as_bytes()).collect();
                let answer = client.request("GET", &path).query(&format!("{name}={query}")).send();
                let refused =
                    if answer.code() == "validation_failed" { answer.pointers() } else { Vec::new() };
                assert_eq!(
                    refused.contains(&format!("/{name}")),
                    is_wrong,
                    "{path}?{name}={text}: {refused:?}"
                );
                checked += 1;
            }
        }
    }
    assert!(checked > 100, "{checked}");
}

#[test]
fn what_is_one_of_a_few_words_is_an_enum() {
    let schemas = &document()["components"]["schemas"];
    let codes: Vec<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
    assert_eq!(schemas["ProblemCode"]["enum"], json!(codes));
    let code = &schemas["Problem"]["properties"]["code"]["anyOf"];
    let open = json!([{"$ref": "#/components/schemas/ProblemCode"}, {"type": "string"}]);
    assert_eq!(*code, open, "a client reads codes that it doesn't know, too");
    let kinds: Vec<_> = oncepay::server::resource_kinds().into_iter().map(|kind| kind.name).collect();
    assert_eq!(schemas["KeyResource"]["properties"]["type"]["enum"], json!(kinds));
    // Each member with one of these names has a few words, unless the words are others' (see their descriptions).
    let open = ["decline_code", "refusal_code"];
    for (schema, definition) in schemas.as_object().unwrap() {
        for (name, property) in definition["properties"].as_object().into_iter().flatten() {
            let is_word = ["status", "state", "kind", "code", "side"].iter().any(|word| name.ends_with(word));
            let property = target(property);
            if is_word && property["type"] == "string" && !open.contains(&name.as_str()) {
                assert!(property["enum"].is_array(), "{schema}.{name}");
            }
        }
    }
}
