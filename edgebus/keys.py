"""Key pairs, the allow-list and its changes: what the rest of edgebus and its users import.

Files of keys are in edgebus.keyfiles, the list in edgebus.allowlist, changes to it in edgebus.allowedit.
"""

from __future__ import annotations

from edgebus.allowedit import ALLOW_FILE, AllowEdit, add_to_allow_list, allow_keys, deny_keys
from edgebus.allowlist import AllowList
from edgebus.keyfiles import (
    PUBLIC_FILE,
    SECRET_FILE,
    Keys,
    generate_keys,
    is_key,
    load_keys,
    read_public_key,
    read_public_keys,
)

__all__ = [
    "ALLOW_FILE",
    "PUBLIC_FILE",
    "SECRET_FILE",
    "AllowEdit",
    "AllowList",
    "Keys",
    "add_to_allow_list",
    "allow_keys",
    "deny_keys",
    "generate_keys",
    "is_key",
    "load_keys",
    "read_public_key",
    "read_public_keys",
]
