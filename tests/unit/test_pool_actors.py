"""What Ray says of a lost actor, and whether its machine was lost with it."""

from __future__ import annotations

import pytest
from ray import exceptions
from ray.core.generated.common_pb2 import ActorDiedErrorContext, NodeDeathInfo

from fleetstep.orchestration.pool_actors import went_with_machine

NODES = [{"NodeID": "here", "Alive": True}, {"NodeID": "gone", "Alive": False}]


def died(**context: object) -> exceptions.ActorDiedError:
    return exceptions.ActorDiedError(
        ActorDiedErrorContext(error_message="it died", actor_id=b"x" * 16, **context)
    )


PREEMPTED = NodeDeathInfo(reason=NodeDeathInfo.AUTOSCALER_DRAIN_PREEMPTED)


@pytest.mark.parametrize(
    ("error", "machine", "expected"),
    [
        (died(), "here", False),
        (died(), None, False),
        (died(), "gone", True),
        (died(), "forgotten", True),
        (died(node_death_info=PREEMPTED), "here", True),
        (exceptions.ActorUnavailableError("no connection", b"x" * 16), "here", True),
        (exceptions.NodeDiedError("died"), None, True),
        (exceptions.OutOfMemoryError("killed by the memory monitor"), "here", False),
    ],
)
def test_by_error_and_by_machine(error: exceptions.RayError, machine: str | None, expected: bool):
    assert went_with_machine(error, machine, NODES) is expected
