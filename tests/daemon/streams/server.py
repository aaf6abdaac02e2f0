"""An HTTP server of the test's own over hijack and streams: `server.py asyncio|uvloop FOLDER`."""

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import cast

import uvicorn
from dockerd_api import hijack
from dockerd_api.accepting import Acceptor
from dockerd_api.streams.connections import Connections
from dockerd_api.streams.fdstore import FdStore
from dockerd_api.streams.reply import ReplyStream, Streams, response_head
from rpc import service_manager
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

folder = Path(sys.argv[2])
passed = service_manager.listen_fds()
store = FdStore(passed)
connections = Connections(store)


async def pid(request: Request) -> Response:
    return JSONResponse({"pid": os.getpid()})


async def big(request: Request) -> Response:
    return Response(bytes(int(request.query_params["size"])))


async def slow(request: Request) -> Response:
    while not (folder / "quick").exists():  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    return Response(await request.body())


async def changing(request: Request) -> Response:
    hijack.once(request)
    return await slow(request)


async def deadly(request: Request) -> Response:
    os.kill(os.getpid(), signal.SIGKILL)
    return Response()


async def body(request: Request) -> Response:
    return Response(await request.body())


async def count(request: Request) -> Response:
    to = int(request.query_params["to"])
    head = response_head("text/plain", chunked=True)
    request.app.state.streams.begin("count", hijack.take(request), {"to": to}, head=head, chunked=True)
    return Response()


async def hold(request: Request) -> Response:
    head = response_head("text/plain", chunked=True)
    request.app.state.streams.begin("hold", hijack.take(request), {}, head=head, chunked=True)
    return Response()


async def refused(request: Request) -> Response:
    return Response('{"message":"no"}', status_code=404, media_type="application/json")


async def attach(request: Request) -> Response:
    """Sends back the body's size, the leading bytes, then everything that comes, to the end."""
    size = len(await request.body())
    taken = hijack.take(request)
    taken.stored()
    taken.released()
    upgrade = "upgrade" in request.headers
    head = b"HTTP/1.1 101 UPGRADED\r\n\r\n" if upgrade else b"HTTP/1.1 200 OK\r\n\r\n"

    async def echo() -> None:
        loop = asyncio.get_running_loop()
        with taken.sock:
            await loop.sock_sendall(taken.sock, head + b"%d:" % size + taken.leading)
            while data := await loop.sock_recv(taken.sock, 65536):
                await loop.sock_sendall(taken.sock, data)

    request.app.state.echo = asyncio.create_task(echo())
    return Response()


async def produce_count(stream: ReplyStream) -> None:
    for number in range(int(stream.position or "0"), stream.params["to"]):
        stream.append(b"%d\n" % number, str(number + 1))
        await stream.room()
        if number % 10 == 0:
            await asyncio.sleep(0.001)
    stream.finish()


async def produce_hold(stream: ReplyStream) -> None:
    (folder / f"held-{stream.id}").touch()
    stream.on_gone = lambda: (folder / f"gone-{stream.id}").touch()
    while not (folder / "release").exists():  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    stream.finish(b"released\n")


app = Starlette(
    routes=[
        Route("/pid", pid, methods=["GET"]),
        Route("/big", big, methods=["GET"]),
        Route("/slow", slow, methods=["GET", "POST"]),
        Route("/v1.50/containers/c/wait", slow, methods=["POST"]),
        Route("/v1.50/exec/e/start", slow, methods=["POST"]),
        Route("/v1.50/exec/changing/start", changing, methods=["POST"]),
        Route("/deadly", deadly, methods=["GET"]),
        Route("/body", body, methods=["POST"]),
        Route("/count", count, methods=["GET"]),
        Route("/hold", hold, methods=["GET"]),
        Route("/containers/refused/attach", refused, methods=["POST"]),
        Route("/containers/{name}/attach", attach, methods=["POST"]),
    ]
)


async def main() -> None:
    listening = service_manager.listening_socket(passed, "api.sock", str(folder / "none.sock"))
    streams = app.state.streams = Streams(store)
    streams.produce("count", produce_count)
    streams.produce("hold", produce_hold)
    connections.recover(streams.holds)
    streams.recover()
    config = uvicorn.Config(
        app, http=hijack.protocol(connections), ws="none", lifespan="off", log_level="warning",
        timeout_graceful_shutdown=5,
    )  # fmt: skip
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve([]))
    while not server.started:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    await connections.adopt(server)
    server.servers.append(cast(asyncio.Server, Acceptor(server, listening, connections)))
    service_manager.ready()
    await serving
    await streams.close()


if sys.argv[1] == "uvloop":
    import uvloop

    uvloop.run(main())
else:
    asyncio.run(main())
