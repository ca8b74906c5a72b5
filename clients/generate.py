"""Writes what the clients have of openapi/openapi.json: python generate.py [FOLDER], by default into this folder.

python/oncepay_client/types.py comes from datamodel-codegen, which python/requirements-dev.txt names. The methods of
python/oncepay_client/operations.py, and rust/src/api.rs, are written here. The types of TypeScript aren't checked in:
`npm ci` writes them.
"""

import json
import pathlib
import re
import subprocess
import sys
import textwrap

HERE = pathlib.Path(__file__).resolve().parent
DOCUMENT = json.loads((HERE.parent / "openapi" / "openapi.json").read_text())
SCHEMAS = DOCUMENT["components"]["schemas"]


def name_of(schema):
    """The name of a schema that is a reference."""
    return schema["$ref"].rsplit("/", 1)[1] if "$ref" in schema else None


def operations():
    """What a merchant can change: id, method, path, names of the path's parameters, body, whether it's required, answer."""
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            if method not in ("post", "put", "patch", "delete") or {"api_key": []} not in operation["security"]:
                continue
            body = operation.get("requestBody", {})
            [answer] = [response for status, response in operation["responses"].items() if status.startswith("2")]
            schemas = [part["content"]["application/json"]["schema"] if part else {} for part in (body, answer)]
            yield (operation["operationId"].replace(".", "_"), method.upper(), path, re.findall(r"{(\w+)}", path),
                   *map(name_of, schemas), body.get("required", False), operation["summary"])


def python():
    found = list(operations())
    types = sorted({kind for operation in found for kind in operation[4:6] if kind})
    yield '"""The requests that change something, by generate.py: see clients/README.md."""\n'
    yield "from collections.abc import Mapping\nfrom typing import Any, cast\nfrom urllib.parse import quote\n"
    yield "from .types import (\n" + "".join(f"    {kind},\n" for kind in types) + ")\n\n"
    yield "class Operations:"
    yield '    """One method for each request."""\n'
    yield "    def once(self, name: str, method: str, path: str, body: Mapping[str, object] | None) -> Any:"
    yield '        """Makes a request that has no method of its own, such as one with a query. Returns the body of its answer."""'
    yield "        raise NotImplementedError"
    for operation, method, path, parameters, body, answer, is_required, summary in found:
        arguments = ["self", "name: str", *(f"{parameter}: str" for parameter in parameters)]
        if body:
            arguments.append(f"body: {body}" + ("" if is_required else " | None = None"))
        filled = re.sub(r"{(\w+)}", r'{quote(\1, safe="")}', path)
        prefix = "f" if parameters else ""
        yield f"\n    def {operation}({', '.join(arguments)}) -> {answer}:"
        yield f'        """{summary}."""'
        path = f"'{filled}'" if parameters else f'"{filled}"'
        yield f'        return cast({answer}, self.once(name, "{method}", {prefix}{path}, {"body" if body else "None"}))'


def nested(schema):
    """The names of the schemas in a schema."""
    if isinstance(schema, dict):
        if "$ref" in schema:
            yield name_of(schema)
        for part in schema.values():
            yield from nested(part)
    elif isinstance(schema, list):
        for part in schema:
            yield from nested(part)


def rust_type(schema):
    """The type, and whether it can be null."""
    if options := schema.get("oneOf") or schema.get("anyOf"):
        others = [option for option in options if option != {"type": "null"}]
        names = {rust_type(option)[0] for option in others}
        return (names.pop() if len(names) == 1 else "serde_json::Value"), len(others) < len(options)
    if target := name_of(schema):
        is_struct = "properties" in SCHEMAS[target] or SCHEMAS[target].get("additionalProperties") is False
        return (target, False) if is_struct else rust_type(SCHEMAS[target])
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    [kind] = [kind for kind in kinds if kind != "null"] or [None]
    if kind == "array":
        name = f"Vec<{rust_type(schema['items'])[0]}>"
    elif kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        value, can_be_null = rust_type(schema["additionalProperties"])
        name = f"BTreeMap<String, {f'Option<{value}>' if can_be_null else value}>"
    else:
        # Also enumerations, since a later version of the service may have more values.
        name = {"string": "String", "integer": "i64", "boolean": "bool"}.get(kind, "serde_json::Value")
    return name, "null" in kinds


def rust():
    found = list(operations())
    wanted, patches = [], {body for _, method, _, _, body, *_ in found if method == "PATCH"}
    queue = sorted({kind for operation in found for kind in operation[4:6] if kind} | {"Problem"})
    while queue:
        kind = queue.pop(0)
        if kind not in wanted:
            wanted.append(kind)
            queue += nested(SCHEMAS[kind])
    yield "// The requests that change something, and their types, by generate.py: see clients/README.md.\n"
    yield "use std::collections::BTreeMap;\n\nuse reqwest::Method;\nuse serde::{Deserialize, Serialize};\n\nuse crate::{Oncepay, Result};"
    for kind in sorted(wanted):
        schema = SCHEMAS[kind]
        if rust_type({"$ref": f"/{kind}"})[0] != kind:
            continue
        yield "\n" + comment(schema["description"])
        yield "#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]"
        yield f"pub struct {kind} {{"
        for field, of in schema.get("properties", {}).items():
            type_name, can_be_null = rust_type(of)
            is_optional = field not in schema.get("required", [])
            yield comment(of.get("description", ""), "    ")
            if is_optional:
                yield '    #[serde(default, skip_serializing_if = "Option::is_none")]'
            if can_be_null or is_optional:
                type_name = f"Option<{type_name}>"
            # In a patch, `null` isn't the same as nothing.
            if can_be_null and is_optional and kind in patches:
                type_name = f"Option<{type_name}>"
            yield f"    pub {field if field != 'type' else 'r#type'}: {type_name},"
        yield "}"
    yield "\nimpl Oncepay {"
    for number, (operation, method, path, parameters, body, answer, is_required, summary) in enumerate(found):
        arguments = ["&self", "name: &str", *(f"{parameter}: &str" for parameter in parameters)]
        if body:
            arguments.append(f"body: &{body}" if is_required else f"body: Option<&{body}>")
        sent = "body" if body else "()"
        yield ("\n" if number else "") + comment(f"{summary}.", "    ")
        yield f"    pub fn {operation}({', '.join(arguments)}) -> Result<{answer}> {{"
        path = f'&format!("{path}")' if parameters else f'"{path}"'
        yield f'        self.once(name, Method::{method}, {path}, {sent})'
        yield "    }"
    yield "}"


def comment(text, indent=""):
    lines = textwrap.wrap(" ".join(text.split()), 110, break_long_words=False)
    return "\n".join(f"{indent}/// {line}" for line in lines)


target = pathlib.Path(sys.argv[1]).resolve() if sys.argv[1:] else HERE
types = target / "python" / "oncepay_client" / "types.py"
subprocess.run([pathlib.Path(sys.executable).with_name("datamodel-codegen"), "--output", types], cwd=HERE / "python", check=True)
types.with_name("operations.py").write_text("\n".join(python()) + "\n")
api = target / "rust" / "src" / "api.rs"
api.write_text("\n".join(rust()) + "\n")
subprocess.run(["rustfmt", "--edition", "2024", "--config-path", HERE.parent / "rustfmt.toml", api], check=True)
