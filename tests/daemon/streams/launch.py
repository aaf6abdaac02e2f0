"""The launcher's supervisor over server.py: `launch.py STATE LOOP REPORT`."""

import sys
from pathlib import Path

from launcher.layout import Layout, Service, Socket
from launcher.supervisor import main

layout = Layout.of(sys.argv[1])
server = str(Path(__file__).with_name("server.py"))
api = Service(
    name="api",
    argv=(sys.executable, server, sys.argv[2], str(layout.run)),
    sockets=(Socket("api.sock", layout.run / "api.sock"),),
    watchdog=0,
    stored_fds=1024,
)
sys.exit(main(layout, [api], int(sys.argv[3])))
