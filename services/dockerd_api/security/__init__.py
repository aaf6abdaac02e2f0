"""What confines a container by default, as Docker has it: facts as data, and pure functions over them."""

from __future__ import annotations

from .apparmor import load_default_profile, profile_text
from .capability_set import available_capabilities, capabilities, default_capabilities
from .paths import masked_paths, readonly_paths
from .seccomp import container_seccomp, seccomp_profile, user_profile

MASKED_PATHS = masked_paths()
READONLY_PATHS = readonly_paths()

__all__ = [
    "MASKED_PATHS",
    "READONLY_PATHS",
    "available_capabilities",
    "capabilities",
    "container_seccomp",
    "default_capabilities",
    "load_default_profile",
    "masked_paths",
    "profile_text",
    "readonly_paths",
    "seccomp_profile",
    "user_profile",
]
