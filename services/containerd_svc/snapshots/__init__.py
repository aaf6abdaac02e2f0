"""Snapshots: file trees in layers. An active one (by key) is written to, a committed one (by name) never
again.
"""

from containerd_svc.snapshots.records import MIGRATION, MIGRATION_KEPT, Info
from containerd_svc.snapshots.store import Snapshots

__all__ = ["MIGRATION", "MIGRATION_KEPT", "Info", "Snapshots"]
