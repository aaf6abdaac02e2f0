"""The tables of meta.db: one script per version of the schema, never changed once released."""

from __future__ import annotations

from containerd_svc import (
    containers,
    content,
    events,
    images,
    leases,
    namespaces,
    quarantine,
    sandboxes,
    snapshots,
    task_rows,
)

MIGRATIONS = [
    "\n".join(
        (
            events.MIGRATION,
            namespaces.MIGRATION,
            containers.MIGRATION,
            task_rows.MIGRATION,
            content.MIGRATION,
            leases.MIGRATION,
            snapshots.MIGRATION,
            images.MIGRATION,
            "CREATE TABLE daemon (uuid TEXT NOT NULL);",
        )
    ),
    sandboxes.MIGRATION,
    quarantine.MIGRATION,
    snapshots.MIGRATION_KEPT,
]
