"""Small state over streams: a publisher of topics, and subscriptions that keep up with them by themselves.

The rules are state.py's and replica.py's; docs/spec/bus-state.md has them for people. No thread is added: what is
published is pushed by the thread that publishes, or once there is room by the one that drives the node.
"""

from __future__ import annotations

import logging
import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgebus.errors import ConfigError, EdgebusError, MessageTooLarge, StreamEnded
from edgebus.payloads import decode, encode
from edgebus.state import EPOCH_BYTES, MAX_TOPIC, Cursor, Publication, Subscribe
from edgebus.wire import check_name

if TYPE_CHECKING:
    from edgebus.inbox import Request
    from edgebus.node import Node

SERVICE_PREFIX = "edgebus.state/"
_LEAST_PART_BYTES = 1024
_log = logging.getLogger("edgebus")


def topic_service(topic: str) -> str:
    """The service a topic is subscribed to by, which is what permissions name.

    Raises:
        TypeError: not a string.
        ValueError: empty, over 50 characters, or not UTF-8.

    >>> topic_service("prices")
    'edgebus.state/prices'
    """
    check_name("topic", topic)
    if len(topic) > MAX_TOPIC:
        raise ValueError(f"topic must have 1..{MAX_TOPIC} characters, got {len(topic)}")
    return SERVICE_PREFIX + topic


@dataclass(eq=False)
class _Subscriber:
    request: Request
    cursor: Cursor
    part_bytes: int
    feeding: bool = False  # a thread pushes, or will once there is room
    ended: bool = False


class _Topic:
    def __init__(self, publication: Publication) -> None:
        self.publication = publication
        self.lock = threading.Lock()  # never held while something is pushed
        self.subscribers: list[_Subscriber] = []


class Publisher:
    """The topics of a node; Node.publish and Node.unpublish use one. Every method may be called from any thread.

    Args:
        node: whose streams carry it.
        max_topics: most topics.
        max_subscribers: most subscribers of one topic; more are refused "busy".
        epoch: 8 bytes that name this life; random unless given.
    """

    def __init__(
        self, node: Node, *, max_topics: int = 64, max_subscribers: int = 256, epoch: bytes | None = None
    ) -> None:
        self._node = node
        self._max_topics, self._max_subscribers = max_topics, max_subscribers
        self._epoch = epoch or os.urandom(EPOCH_BYTES)
        self._topics: dict[str, _Topic] = {}
        self._lock = threading.Lock()

    def declare(self, topic: str) -> None:
        """Let subscribers in before there is anything to tell. Twice is fine.

        Raises:
            ConfigError: too many topics.
            TypeError, ValueError: not a topic.
        """
        self._find(topic)

    def publish(self, topic: str, key: str, value: bytes) -> None:
        """Give a key of a topic a value, and tell all subscribers.

        Args:
            topic: at most 50 characters; made if it is new.
            key: at most 256 bytes of UTF-8.
            value: at most 64 KiB.

        Raises:
            ConfigError: too many topics.
            TypeError, ValueError: what cannot travel, or a topic that is full.
        """
        if isinstance(value, bytearray | memoryview):
            value = bytes(value)
        found = self._find(topic)
        with found.lock:
            changed = found.publication.set(key, value)
        if changed:
            self._feed_all(found)

    def unpublish(self, topic: str, key: str) -> None:
        """Remove a key of a topic; nothing happens if it is not there."""
        found = self._topics.get(topic)
        if found is None:
            return
        with found.lock:
            changed = found.publication.remove(key)
        if changed:
            self._feed_all(found)

    def snapshot(self, topic: str) -> dict[str, bytes]:
        """All keys and values of a topic."""
        found = self._topics.get(topic)
        if found is None:
            return {}
        with found.lock:
            return found.publication.snapshot()

    def num_subscribers(self, topic: str) -> int:
        """Subscribers of a topic that have not gone away."""
        found = self._topics.get(topic)
        if found is None:
            return 0
        with found.lock:
            _prune(found)
            return len(found.subscribers)

    def _find(self, topic: str) -> _Topic:
        found = self._topics.get(topic)
        if found is not None:
            return found
        service = topic_service(topic)
        with self._lock:
            if topic in self._topics:
                return self._topics[topic]
            if len(self._topics) >= self._max_topics:
                raise ConfigError(f"{len(self._topics)} topics, no room for {topic!r}: use more keys in fewer topics")
            found = _Topic(Publication(self._epoch))
            self._node.handle(service, lambda request: self._subscribe(found, request))
            self._topics[topic] = found
        return found

    def _subscribe(self, topic: _Topic, request: Request) -> None:
        """A request for the topic (driving thread)."""
        if not request.is_stream:
            request.refuse("invalid", f"{request.service} is a stream: use edgebus.subscribe, or link.stream")
            return
        try:
            wanted = decode(Subscribe, request.payload)
        except ValueError as error:
            request.refuse("invalid", str(error))
            return
        with topic.lock:
            _prune(topic)
            full = len(topic.subscribers) >= self._max_subscribers
            if not full:
                subscriber = _Subscriber(request, topic.publication.open(wanted), wanted.part_bytes)
                topic.subscribers.append(subscriber)
        if full:
            request.refuse("busy", f"{request.service} has {self._max_subscribers} subscribers: try again later")
        else:
            self._feed(topic, subscriber)

    def _feed_all(self, topic: _Topic) -> None:
        with topic.lock:
            subscribers = [each for each in topic.subscribers if not each.feeding]
        for subscriber in subscribers:
            self._feed(topic, subscriber)

    def _feed(self, topic: _Topic, subscriber: _Subscriber) -> None:
        """Push all that a subscriber lacks and has room for."""
        with topic.lock:
            if subscriber.feeding or subscriber.ended:
                return
            subscriber.feeding = True
        while True:
            with topic.lock:
                found = topic.publication.next_part(subscriber.cursor, subscriber.part_bytes)
                if found is None:
                    subscriber.feeding = False
                    return
            try:
                if not subscriber.request.try_push(encode(found[0])):
                    subscriber.request.when_room(lambda: self._resume(topic, subscriber))
                    return
                subscriber.cursor = found[1]
            except MessageTooLarge as error:
                if len(found[0].entries) > 1 and subscriber.part_bytes > _LEAST_PART_BYTES:
                    subscriber.part_bytes = max(_LEAST_PART_BYTES, subscriber.part_bytes // 2)
                    continue
                self._end(topic, subscriber, str(error))
                return
            except StreamEnded:
                self._end(topic, subscriber)
                return

    def _resume(self, topic: _Topic, subscriber: _Subscriber) -> None:
        """There is room again, or the subscriber is gone."""
        with topic.lock:
            subscriber.feeding = False
        self._feed(topic, subscriber)

    def _end(self, topic: _Topic, subscriber: _Subscriber, why: str = "") -> None:
        with topic.lock:
            subscriber.ended = True
            topic.subscribers = [each for each in topic.subscribers if each is not subscriber]
        if why:
            try:
                subscriber.request.refuse("too_large", why)
            except EdgebusError as error:
                _log.warning("a subscriber of %s could not be told: %s", subscriber.request.service, error)


def _prune(topic: _Topic) -> None:
    """Let go of subscribers that left while there was nothing to tell them."""
    topic.subscribers = [each for each in topic.subscribers if each.request.remaining_s() > 0]
