"""edgebus: a message bus without a broker, whose requests have exactly one outcome each.

Names are loaded on first use: `import edgebus` costs milliseconds, libzmq comes with the first Node.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from edgebus.config import Limits
from edgebus.errors import (
    AlreadyAnswered,
    BindError,
    ConfigError,
    DeadlineExceeded,
    EdgebusError,
    InsecureError,
    KeyFileError,
    KeyNotAllowed,
    LinkLost,
    LocalError,
    MessageTooLarge,
    NodeClosed,
    PeerUnreachable,
    Refused,
    RemoteError,
    RequestCancelled,
    VersionMismatch,
    WrongServerKey,
)
from edgebus.keys import (
    AllowList,
    Keys,
    add_to_allow_list,
    generate_keys,
    load_keys,
    read_public_key,
)

if TYPE_CHECKING:
    from edgebus.calls import Pending, Reply
    from edgebus.members import Patience
    from edgebus.inbox import Inbox, Peer, Request
    from edgebus.node import Link, Node
    from edgebus.pool import Pool
    from edgebus.replica import Changed, Removed
    from edgebus.services import announce
    from edgebus.subscribing import Subscription, subscribe
    from edgebus.stats import LinkStats, NodeStats

_LAZY = {
    "Inbox": "inbox",
    "Link": "node",
    "LinkStats": "stats",
    "Changed": "replica",
    "Node": "node",
    "Patience": "members",
    "Pool": "pool",
    "Removed": "replica",
    "Subscription": "subscribing",
    "announce": "services",
    "subscribe": "subscribing",
    "NodeStats": "stats",
    "Peer": "inbox",
    "Pending": "calls",
    "Reply": "calls",
    "Request": "inbox",
}

__all__ = [
    "AllowList",
    "AlreadyAnswered",
    "BindError",
    "ConfigError",
    "DeadlineExceeded",
    "EdgebusError",
    "Inbox",
    "InsecureError",
    "KeyFileError",
    "KeyNotAllowed",
    "Keys",
    "Limits",
    "Link",
    "LinkLost",
    "LinkStats",
    "LocalError",
    "MessageTooLarge",
    "Node",
    "NodeClosed",
    "NodeStats",
    "Peer",
    "PeerUnreachable",
    "Pending",
    "Refused",
    "RemoteError",
    "Reply",
    "Request",
    "RequestCancelled",
    "VersionMismatch",
    "WrongServerKey",
    "add_to_allow_list",
    "generate_keys",
    "load_keys",
    "read_public_key",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'edgebus' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"edgebus.{_LAZY[name]}"), name)
    globals()[name] = value
    return value
