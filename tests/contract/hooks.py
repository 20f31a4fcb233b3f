"""What schemathesis must not send, each with its reason."""

import schemathesis

# The device that the tests act as.
RUNNER = "runner"

# Of these fields a body needs one or more. The schema says so by `anyOf` beside `properties`, which schemathesis does not
# read: it takes bodies with none of them for valid. That the server refuses them is shown in tests/it.
NEEDED = {
    "/keypackages/reserve": {"target_user", "targets"},
    "/keypackages/revoke": {"refs", "all"},
}


@schemathesis.hook
def filter_case(ctx, case):
    path = case.operation.path
    parameters = case.path_parameters or {}
    if path.startswith("/devices/") and parameters.get("device") == RUNNER:
        # It would end the token that all the other requests are made with.
        return False
    return path not in NEEDED or not isinstance(case.body, dict) or bool(NEEDED[path] & case.body.keys())
