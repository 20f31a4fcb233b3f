"""What schemathesis must not end: the devices that the test acts as and reserves from; and how users are called."""

import base64
import json
import unicodedata

import schemathesis
from hypothesis import strategies as st

LETTERS = st.characters(exclude_categories=("C", "Z"), exclude_characters="\ufffd")
NAMES = (
    st.text(LETTERS, min_size=1, max_size=60)
    .map(lambda name: unicodedata.normalize("NFC", name))
    .filter(lambda name: name not in (".", "..") and len(name.encode()) <= 255)
)
schemathesis.openapi.format("user-name", NAMES)



def place(fresh, user, suite):
    """What the server answers as `next` of a page of low pools."""
    return base64.urlsafe_b64encode(json.dumps([fresh, user, "phone", suite]).encode()).decode().rstrip("=")


PLACES = st.builds(place, st.integers(0, 100), NAMES, st.none() | st.integers(0, 0xFFFF))
schemathesis.openapi.format("low-pool", PLACES)

KEPT = {"laptop", "runner"}
WAITS = {str(seconds) for seconds in range(1, 61)}


@schemathesis.hook
def before_call(ctx, case, kwargs):
    # In every phase: some take names from what the server answered before.
    ends = case.method == "DELETE" or case.operation.path.endswith("/token")
    if ends and case.path_parameters.get("device") in KEPT:
        case.path_parameters["device"] = "spare-0"
    # Nobody waits for a minute, a hundred times. What is not allowed stays as it is.
    if str((case.query or {}).get("wait")) in WAITS:
        case.query["wait"] = 0
