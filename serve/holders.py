"""Which replicas hold which adapters, told to Ray Serve: its router then prefers them.

The only place that touches what `@serve.multiplexed` uses inside; its own cache of models would
load and evict beside ours.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

log = logging.getLogger("ray.serve")


def announce(model_ids: Sequence[str]) -> None:
    """Tell Serve's controller what this replica holds now; trouble costs the preference only.

    A replica whose queue is full is passed over: after a second its requests go to one that holds
    the fewest adapters, which loads it too, so that a busy adapter spreads.
    """
    from ray import serve as ray_serve
    from ray.serve._private.common import RequestRoutingInfo
    from ray.serve.context import _get_global_client

    try:
        info = RequestRoutingInfo(
            replica_id=ray_serve.get_replica_context().replica_id,
            multiplexed_model_ids=list(model_ids),
        )
        _get_global_client().record_request_routing_info(info)
    except Exception:
        log.exception("cannot tell Serve which adapters are here")
