"""Every answer of the command is of its schema, and has no field that the schema does not name."""

import json
import sys

from jsonschema import Draft202012Validator

DOCUMENT = json.load(open(sys.argv[1], encoding="utf-8"))
SAMPLES = json.load(open(sys.argv[2], encoding="utf-8"))


def strict(schema, is_whole):
    """The schema, which also refuses further fields. Of parts that are put together, the whole refuses them."""
    if not isinstance(schema, dict):
        return schema
    closed = {"unevaluatedProperties": False} if is_whole else {}
    for key, value in schema.items():
        if key == "properties":
            closed[key] = {name: strict(part, True) for name, part in value.items()}
        elif key == "$defs":
            closed[key] = {name: strict(part, name in COMMANDS) for name, part in value.items()}
        elif key in ("items", "additionalProperties"):
            closed[key] = strict(value, True)
        elif key in ("allOf", "anyOf", "oneOf"):
            closed[key] = [strict(part, False) for part in value]
        else:
            closed[key] = value
    return closed


COMMANDS = {name for name in DOCUMENT["$defs"] if name[0].islower()}
Draft202012Validator.check_schema(DOCUMENT)
document = strict(DOCUMENT, False)
wrong = [f"nothing of {name}" for name in COMMANDS - SAMPLES.keys()]
count = 0
for command, samples in SAMPLES.items():
    validator = Draft202012Validator(
        {**document, "$ref": f"#/$defs/{command}"}, format_checker=Draft202012Validator.FORMAT_CHECKER
    )
    for sample in samples:
        count += 1
        wrong += [f"{command}: {sample!r}: {error.message}" for error in validator.iter_errors(sample)]
        one = sample[0] if isinstance(sample, list) and sample else sample
        surplus = {**one, "surplus": 1} if one else {}
        if one and validator.is_valid([surplus] if isinstance(sample, list) else surplus):
            wrong.append(f"{command}: a field that it does not name is accepted")
print(f"{count} answers")
sys.exit("\n".join(wrong) or None)
