"""A client generated from the OpenAPI document does what a messenger does: register, upload, reserve, spend, look.

Arguments: the server's address. Environment: KEYPACKAGES, base64 of KeyPackages of bob/phone, one a line.
"""

import os
import sys

from keypool_client import AuthenticatedClient, Client
from keypool_client.api.devices import register_device
from keypool_client.api.keypackages import (
    get_pool_status,
    release_reservation,
    reserve_key_packages,
    spend_reservation,
    upload_key_packages,
)
from keypool_client.models import (
    Health,
    Problem,
    ProblemType,
    RegisterRequest,
    RegisterResponse,
    ReleaseRequest,
    ReserveRequest,
    SpendRequest,
    State,
    UploadRequest,
)

GROUP = "ZnJpZW5kcw=="


def registered(server: str, user: str, device: str) -> AuthenticatedClient:
    answer = register_device.sync(client=Client(base_url=server), body=RegisterRequest(user=user, device=device))
    assert isinstance(answer, RegisterResponse), answer
    assert (answer.user, answer.device) == (user, device), answer
    return AuthenticatedClient(base_url=server, token=answer.token)


def main(server: str, packages: list[str]) -> None:
    alice, bob = registered(server, "alice", "laptop"), registered(server, "bob", "phone")

    uploaded = upload_key_packages.sync(client=bob, body=UploadRequest(keypackages=packages + ["AAAA"]))
    assert len(uploaded.accepted) == len(packages), uploaded
    assert [(one.index, one.reason) for one in uploaded.rejected] == [(len(packages), "malformed")], uploaded

    held = reserve_key_packages.sync(client=alice, body=ReserveRequest(target_user="bob", group_id=GROUP))
    [reservation] = held.reservations
    assert reservation.keypackage in packages, reservation
    assert held.missing == [], held

    spend = SpendRequest(reservation_id=reservation.reservation_id, group_id=GROUP)
    spent = spend_reservation.sync(client=alice, body=spend)
    assert (spent.keypackage_ref, spent.state) == (reservation.keypackage_ref, State.SPENT), spent

    back = reserve_key_packages.sync(client=alice, body=ReserveRequest(targets=["bob", "nobody"])).reservations[0]
    released = release_reservation.sync(client=alice, body=ReleaseRequest(reservation_id=back.reservation_id))
    assert released.state == State.AVAILABLE, released

    unknown = reserve_key_packages.sync(client=alice, body=ReserveRequest(target_user="nobody"))
    assert isinstance(unknown, Problem) and unknown.type_ == ProblemType.UNKNOWN_USER, unknown

    pool = get_pool_status.sync(client=bob)
    assert (pool.spent, pool.lapsed, pool.fresh) == (1, 1, len(packages) - 2), pool
    assert pool.health == Health.LOW, pool
    print(f"python: {pool.total} KeyPackages, {pool.spent} spent, {pool.health}")


main(sys.argv[1], os.environ["KEYPACKAGES"].split())
