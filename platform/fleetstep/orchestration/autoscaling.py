"""What is asked of Ray's autoscaler, and what it answers.

A pool says with `request_resources` how many actors it wants machines for, and takes that back
when it needs fewer. The request is one for the whole cluster, the last one holds, and Ray grants
it whole or not at all; actors that wait for a place ask for machines too, one by one. So a pool
does both where the autoscaler of the second generation runs: the request keeps machines while
actors come and go, and the waiting actors get as many machines as there can be.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Protocol

import ray
from ray.autoscaler import sdk


class Autoscaler(Protocol):
    """What a pool needs of an autoscaler."""

    def grows(self) -> bool:
        """Whether machines can be added to the cluster."""
        ...

    def node_kinds(self) -> Sequence[Mapping[str, float]]:
        """The resources of one machine of each kind it can add, where that is known."""
        ...

    def ask(self, actors: int) -> None:
        """Have machines for so many actors; 0 lets them go."""
        ...

    def refuses(self) -> bool:
        """Whether it says that it cannot place an actor, and is not adding any machine."""
        ...


class RayAutoscaler:
    """`Autoscaler` of the Ray cluster this process is connected to.

    Args:
        cpus, gpus: Ray's resources of one actor.
    """

    def __init__(self, *, cpus: float, gpus: float) -> None:
        self._bundle = {key: n for key, n in (("CPU", cpus), ("GPU", gpus)) if n > 0}
        self._asked = 0

    def grows(self) -> bool:
        """See `Autoscaler`. The first generation's cannot be told from none at all: it is asked,
        but not waited for.
        """
        from ray.autoscaler.v2.utils import is_autoscaler_v2

        return bool(is_autoscaler_v2(fetch_from_server=True))

    def node_kinds(self) -> Sequence[Mapping[str, float]]:
        """See `Autoscaler`. Only some of Ray's operators report their settings."""
        config = ray._private.state.state.get_cluster_config()
        groups = [] if config is None else config.node_group_configs
        return [dict(group.resources) for group in groups if group.max_count != 0]

    def ask(self, actors: int) -> None:
        """See `Autoscaler`."""
        # Never for actors that need nothing: the request would replace another job's.
        if not self._bundle or actors == self._asked:
            return
        # A cluster that is gone holds no machine for us.
        with contextlib.suppress(*([] if actors else [Exception])):
            sdk.request_resources(bundles=[dict(self._bundle) for _ in range(actors)])
        self._asked = actors

    def refuses(self) -> bool:
        """See `Autoscaler`."""
        from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply

        reply = GetClusterStatusReply()
        try:
            client = ray._raylet.GcsClient(ray.get_runtime_context().gcs_address)
            reply.ParseFromString(client.get_cluster_status(timeout_s=10))
        except ray.exceptions.RayError:  # no answer is no refusal
            return False
        state = reply.autoscaling_state
        if state.pending_instance_requests or state.pending_instances:
            return False
        return any(
            dict(request.resources_bundle) == self._bundle
            for request in state.infeasible_resource_requests
        )
