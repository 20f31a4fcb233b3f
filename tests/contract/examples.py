"""Every example in the OpenAPI document is of the schema that it is an example of."""

import json
import sys

from openapi_schema_validator import OAS31Validator

DOCUMENT = json.load(open(sys.argv[1], encoding="utf-8"))


def exampled(part, path):
    """Each place in the document that has examples: its path, its schema, and the examples."""
    if isinstance(part, dict):
        # Beside a `schema`, examples are of it, and by name; within a schema they are of the schema itself.
        schema = part.get("schema", part)
        examples = [part["example"]] if "example" in part else []
        named = part.get("examples", [])
        examples += [named[name]["value"] for name in named] if isinstance(named, dict) else named
        if examples and (schema is not part or "type" in part or "$ref" in part):
            yield path, schema, examples
        for key, value in part.items():
            if key not in ("example", "examples"):
                yield from exampled(value, f"{path}/{key}")
    elif isinstance(part, list):
        for index, value in enumerate(part):
            yield from exampled(value, f"{path}/{index}")


count, wrong = 0, []
for path, schema, examples in exampled(DOCUMENT, ""):
    # The schema may refer to others of the document.
    validator = OAS31Validator({**schema, "components": DOCUMENT["components"]}, format_checker=OAS31Validator.FORMAT_CHECKER)
    for example in examples:
        count += 1
        wrong += [f"{path}: {example!r}: {error.message}" for error in validator.iter_errors(example)]
print(f"{count} examples")
sys.exit("\n".join(wrong) or None)
