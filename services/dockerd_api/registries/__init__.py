"""Registries: how they are reached by this daemon's settings, who it is there, and what it asks them itself.

Images are moved between a registry and the store by containerd (dockerd_api.images.transfers).
"""

from dockerd_api.registries.asking import Asking
from dockerd_api.registries.credentials import Credentials
from dockerd_api.registries.settings import Registries

__all__ = ["Asking", "Credentials", "Registries"]
