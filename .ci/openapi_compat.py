"""Lists what of an OpenAPI document breaks the clients of an older one: python openapi_compat.py OLD NEW. Exits with 1 if
there is any.

A client's requests must still be taken, and it must still find in each answer what the older document says. It ignores
members and headers that it doesn't know, and new values where a schema has `x-may-grow`.
"""

import json
import sys

# The service calls the merchants there, so what is sent is what a client reads.
MESSAGES = "webhooks"
METHODS = ("get", "put", "post", "patch", "delete")
LEAST = ("minimum", "minLength", "minItems", "minProperties")
MOST = ("maximum", "maxLength", "maxItems", "maxProperties")
# Any change of these may refuse what was valid.
EXACT = ("pattern", "format", "not", "uniqueItems", "propertyNames", "contentEncoding")


def resolved(part, document):
    """A part of a document with what it refers to in place. Members beside a reference only describe it."""
    if isinstance(part, dict):
        if "$ref" in part:
            target = document
            for name in part["$ref"].removeprefix("#/").split("/"):
                target = target[name]
            return resolved(target, document)
        return {name: resolved(member, document) for name, member in part.items()}
    return [resolved(item, document) for item in part] if isinstance(part, list) else part


def merged(schema):
    """A schema without `allOf`."""
    whole = {name: member for name, member in schema.items() if name != "allOf"}
    for part in map(merged, schema.get("allOf", [])):
        whole = part | whole | {"properties": part.get("properties", {}) | whole.get("properties", {}),
                                "required": part.get("required", []) + whole.get("required", [])}
    return whole


def options(schema):
    return schema.get("oneOf") or schema.get("anyOf") or [schema]


def values(schema):
    return schema.get("enum") or ([schema["const"]] if "const" in schema else None)


def types(option):
    """The types of events that an option of a union stands for."""
    return set(values(merged(option).get("properties", {}).get("type", {})) or [])


def wider(sent, read, at, is_answer):
    """Why not every value of the schema `sent` is one of `read`. Of an answer, `read` is what a client expects."""
    sent, read = merged(sent), merged(read)
    may_grow = is_answer and read.get("x-may-grow", False)
    if len(options(sent)) > 1 or len(options(read)) > 1:
        for option in options(sent):
            same = [known for known in options(read) if types(option) & types(known)]
            reasons = [list(wider(option, known, at, is_answer)) for known in same or options(read)]
            if all(reasons) and (same or not may_grow):
                # Those of the option that comes closest.
                yield from min(reasons, key=len)
        return
    kinds = [{kind} if isinstance(kind, str) else set(kind) for kind in (sent.get("type", []), read.get("type", []))]
    if kinds[1] and (not kinds[0] or kinds[0] - kinds[1]):
        yield f"{at}: the type {sent.get('type', 'any')} isn't {read['type']}"
        return
    if values(read) is not None:
        unknown = [value for value in values(sent) or ["any value"] if value not in values(read)]
        if unknown and not may_grow:
            yield f"{at}: {', '.join(map(str, unknown))} isn't among the values"
    elif values(sent) is None:
        for name in LEAST + MOST + EXACT:
            limit, other = read.get(name), sent.get(name)
            kept = other is not None and (other >= limit if name in LEAST else other <= limit if name in MOST else other == limit) \
                if limit is not None else True
            if not kept:
                yield f"{at}: {name} {other} isn't {limit}"
    for name in sorted(set(read.get("required", [])) - set(sent.get("required", []))):
        yield f"{at}/{name}: it's required, and may be missing"
    members, known = sent.get("properties", {}), read.get("properties", {})
    others = read.get("additionalProperties", True)
    for name, member in members.items():
        if name in known:
            yield from wider(member, known[name], f"{at}/{name}", is_answer)
        elif others is False:
            yield f"{at}/{name}: it's refused"
        elif isinstance(others, dict):
            yield from wider(member, others, f"{at}/{name}", is_answer)
    if is_answer:
        for name in sorted(set(known) - set(members)):
            yield f"{at}/{name}: it's gone"
    if isinstance(others, dict) and "additionalProperties" in sent:
        yield from wider(sent["additionalProperties"], others, f"{at}/*", is_answer)
    if "items" in read:
        yield from wider(sent.get("items", {}), read["items"], f"{at}/…", is_answer)


def contents(old, new, at, is_answer):
    """Differences between the bodies of two requests or answers."""
    for media_type, content in old.get("content", {}).items():
        if media_type not in new.get("content", {}):
            yield f"{at}: {media_type} is gone"
            continue
        pair = content.get("schema", {}), new["content"][media_type].get("schema", {})
        yield from wider(*(pair[::-1] if is_answer else pair), at, is_answer)


def operation(old, new, at, is_message):
    if old.get("operationId") != new.get("operationId"):
        yield f"{at}: the operationId became {new.get('operationId')}"
    if old.get("security") != new.get("security"):
        yield f"{at}: security became {new.get('security')}"
    known, found = [{(p["in"], p["name"]): p for p in side.get("parameters", [])} for side in (old, new)]
    for key, parameter in known.items():
        if key not in found:
            yield f"{at} {key[1]}: the parameter is gone"
            continue
        pair = parameter["schema"], found[key]["schema"]
        yield from wider(*(pair[::-1] if is_message else pair), f"{at} {key[1]}", is_message)
    for key, parameter in found.items():
        if parameter.get("required") and not known.get(key, {}).get("required") and not is_message:
            yield f"{at} {key[1]}: the parameter is required"
    bodies = old.get("requestBody", {}), new.get("requestBody", {})
    if bodies[1].get("required") and not bodies[0].get("required"):
        yield f"{at}: the body is required"
    yield from contents(*bodies, f"{at} body", is_message)
    for status, response in old["responses"].items():
        if status not in new["responses"]:
            yield f"{at} {status}: the answer is gone"
            continue
        other = new["responses"][status]
        yield from contents(response, other, f"{at} {status}", True)
        for name, header in response.get("headers", {}).items():
            if name not in other.get("headers", {}):
                yield f"{at} {status}: the header {name} is gone"
            else:
                yield from wider(other["headers"][name]["schema"], header["schema"], f"{at} {status} {name}", True)
    for status in new["responses"].keys() - old["responses"].keys():
        if status[0] in "23":
            yield f"{at} {status}: a client doesn't expect this success"


def breaking(old, new):
    """What in the document `new` breaks the clients of `old`, one line each."""
    for section in ("paths", MESSAGES):
        for path, item in old.get(section, {}).items():
            for method in filter(item.__contains__, METHODS):
                at = f"{method.upper()} {path}" if section == "paths" else f"the message {path}"
                other = new.get(section, {}).get(path, {}).get(method)
                if other is None:
                    yield f"{at} is gone"
                else:
                    yield from operation(resolved(item[method], old), resolved(other, new), at, section == MESSAGES)


if __name__ == "__main__":
    found = sorted(set(breaking(*(json.load(open(path)) for path in sys.argv[1:3]))))
    print("\n".join(found) or "Nothing breaks a client.")
    sys.exit(bool(found))
