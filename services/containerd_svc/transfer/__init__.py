"""Images between the store and a client's archive: the work of containerd's Transfer service."""

from containerd_svc.transfer.streams import Streams
from containerd_svc.transfer.transfers import Transfers

__all__ = ["Streams", "Transfers"]
