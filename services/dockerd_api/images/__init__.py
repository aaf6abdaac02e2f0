"""Images: what Docker knows of them, over a containerd's content, snapshots and images."""

from dockerd_api.images.model import Image
from dockerd_api.images.store import Images

__all__ = ["Image", "Images"]
