"""A process that attaches and detaches container 1, to be killed at the point that the environment names."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from dockerd_api.network.manager import NetnsHelper, Networks, PortRequest
from storage.database import Database

from tests.kernel.network import world


async def main(folder: Path, helper: NetnsHelper, ready: int) -> None:
    database = await Database.open(folder / "engine.db", [])
    networks = await Networks.open(
        database, instance="t", exec_root=folder / "run", config={}, helper=helper, ready=ready
    )
    if ready:
        await world.until(lambda: bool(networks._sandboxes._ready[True]))
    request = world.want(1, PortRequest(80, "tcp", host_port=8080), PortRequest(53, "udp", host_port=53))
    world.close_listeners(await networks.attach(request))
    await networks.detach(request.container_id)
    await networks.close()
    await database.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), NetnsHelper.fork(), int(sys.argv[2])))
