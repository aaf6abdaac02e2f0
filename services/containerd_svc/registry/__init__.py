"""A client of registries: OCI distribution and Docker's registry API v2."""

from containerd_svc.registry.client import Blob, Registry, Resolver
from containerd_svc.registry.credentials import Ask, Credentials, Question

__all__ = ["Ask", "Blob", "Credentials", "Question", "Registry", "Resolver"]
