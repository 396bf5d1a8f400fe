"""edgebus: a message bus without a broker, whose requests have exactly one outcome each.

Names are loaded on first use: `import edgebus` costs milliseconds, libzmq comes with the first Node.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import edgebus.forms  # noqa: F401 - the first of all, since it decides where the others come from
from edgebus.config import Limits
from edgebus.errors import (
    AlreadyAnswered,
    BindError,
    ConfigError,
    DeadlineExceeded,
    EdgebusError,
    FileError,
    InsecureError,
    KeyFileError,
    KeyNotAllowed,
    LinkLost,
    LocalError,
    MessageTooLarge,
    NodeClosed,
    PeerUnreachable,
    QueueFull,
    Refused,
    RemoteError,
    RequestCancelled,
    StreamEnded,
    VersionMismatch,
    WrongServerKey,
)
from edgebus.keys import (
    AllowList,
    Keys,
    add_to_allow_list,
    allow_keys,
    deny_keys,
    generate_keys,
    load_keys,
    read_public_key,
    read_public_keys,
)

if TYPE_CHECKING:
    from edgebus.blobs import Blob, BlobId, BlobStore, fetch_blob, serve_blobs
    from edgebus.calls import Part, Pending, Reply
    from edgebus.inbox import Inbox, Peer, Request
    from edgebus.link_states import Health
    from edgebus.links import Link
    from edgebus.loans import Loan
    from edgebus.members import Patience
    from edgebus.node import Node
    from edgebus.pool import Pool
    from edgebus.replica import Changed, Removed
    from edgebus.services import announce
    from edgebus.stats import LinkStats, NodeStats
    from edgebus.stream import Stream
    from edgebus.subscribing import Subscription, subscribe

_LAZY = {
    "Blob": "blobs",
    "BlobId": "blobs",
    "BlobStore": "blobs",
    "Changed": "replica",
    "Health": "link",
    "Inbox": "inbox",
    "Link": "links",
    "LinkStats": "stats",
    "Loan": "loans",
    "Node": "node",
    "NodeStats": "stats",
    "Part": "calls",
    "Patience": "members",
    "Peer": "inbox",
    "Pending": "calls",
    "Pool": "pool",
    "Removed": "replica",
    "Reply": "calls",
    "Request": "inbox",
    "Stream": "stream",
    "Subscription": "subscribing",
    "announce": "services",
    "fetch_blob": "blobs",
    "serve_blobs": "blobs",
    "subscribe": "subscribing",
}

__all__ = [
    "AllowList",
    "AlreadyAnswered",
    "BindError",
    "Blob",
    "BlobId",
    "BlobStore",
    "Changed",
    "ConfigError",
    "DeadlineExceeded",
    "EdgebusError",
    "FileError",
    "Health",
    "Inbox",
    "InsecureError",
    "KeyFileError",
    "KeyNotAllowed",
    "Keys",
    "Limits",
    "Link",
    "LinkLost",
    "LinkStats",
    "Loan",
    "LocalError",
    "MessageTooLarge",
    "Node",
    "NodeClosed",
    "NodeStats",
    "Part",
    "Patience",
    "Peer",
    "PeerUnreachable",
    "Pending",
    "Pool",
    "QueueFull",
    "Refused",
    "RemoteError",
    "Removed",
    "Reply",
    "Request",
    "RequestCancelled",
    "Stream",
    "StreamEnded",
    "Subscription",
    "VersionMismatch",
    "WrongServerKey",
    "add_to_allow_list",
    "allow_keys",
    "announce",
    "deny_keys",
    "fetch_blob",
    "generate_keys",
    "load_keys",
    "read_public_key",
    "read_public_keys",
    "serve_blobs",
    "subscribe",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'edgebus' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"edgebus.{_LAZY[name]}"), name)
    globals()[name] = value
    return value
