"""Running every code path of a shim in the nursery, so that no shim pays for it, in time or in memory.

The message stubs build their tables at the first use of each class; a rehearsal does the rest.
"""

from __future__ import annotations

import gc
import logging
import sys

import errdefs
import pb.buoy.attach.v1 as attach
import pb.buoy.events.v1 as own_events
import pb.buoy.facts.v1 as facts
import pb.containerd.events as events
import pb.containerd.runc.v1 as runc
import pb.containerd.task.v2 as task
import pb.containerd.types as types
import pb.containerd.v1.types as v1_types
import pb.google.protobuf as protobuf
import pb.ttrpc as wire
from betterproto2 import Message
from container_log.json_encoding import escape
from container_log.times import timestamp

from shim_svc.pages import bring_together, code_of, fill_gaps
from shim_svc.rehearsal import LIVES, rehearse

log = logging.getLogger(__name__)

_MODULES = (attach, own_events, facts, events, runc, task, types, v1_types, protobuf, wire)


def _warm_messages() -> None:
    for module in _MODULES:
        for name in module.__all__:
            kind = getattr(module, name)
            if isinstance(kind, type) and issubclass(kind, Message):
                kind.parse(bytes(kind()))


# Bytes for each size of object: as many gaps as the imports leave, and as the rehearsals do.
_GAPS_OF_IMPORTS, _GAPS_OF_REHEARSALS = 96 * 1024, 48 * 1024


def warm(sockets: str) -> None:
    """Import and run what a shim runs, and lay it out in memory so that shims share as much as they can.

    To be called last, before the first fork. sockets: the folder of the shims' sockets. Starts no thread and
    leaves no descriptor open.
    """
    _warm_messages()
    escape(b'"\xff\x01<')
    timestamp(1)
    try:
        called = code_of(lambda: rehearse(sockets, 1))
        fill_gaps(_GAPS_OF_IMPORTS)
        bring_together(called)
        rehearse(sockets, LIVES)
    except (OSError, errdefs.BuoyError) as error:
        log.warning("no rehearsal, shims will need more memory: %s", error)
    # Where imports are looked for: each runtime's child would free that, object by object, as it is sealed.
    sys.path_importer_cache.clear()
    fill_gaps(_GAPS_OF_REHEARSALS)
    gc.freeze()
