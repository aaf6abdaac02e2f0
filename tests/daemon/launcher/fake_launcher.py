"""The supervisor over the test's own service: STATE WATCHDOG STOP_TIMEOUT KILL_MODE REPORT."""

import sys
from pathlib import Path

from launcher.layout import Layout, Service, Socket
from launcher.supervisor import main

layout = Layout.of(sys.argv[1])
fake = Service(
    name="fake",
    argv=(sys.executable, str(Path(__file__).with_name("fake_service.py"))),
    sockets=(Socket("fake.sock", layout.run / "fake.sock", mode=0o660),),
    watchdog=float(sys.argv[2]),
    stop_timeout=float(sys.argv[3]),
    kill_mode=sys.argv[4],
    stored_fds=64,
)
sys.exit(main(layout, [fake], int(sys.argv[5])))
