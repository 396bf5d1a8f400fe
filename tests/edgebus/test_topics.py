"""Topics over real sockets: subscribers keep up, fall behind, lose their link, and see the publisher start again."""

from __future__ import annotations

import contextlib
import threading
import time

import pytest

import edgebus
from edgebus import topics
from edgebus.payloads import encode
from edgebus.replica import Changed, Removed
from edgebus.state import MAX_VALUE_BYTES, Part
from edgebus.subscribing import BadState, subscribe
from edgebus.topics import Publisher, topic_service

pytestmark = pytest.mark.net
QUICK = edgebus.Limits(heartbeat_s=0.2, silence_s=0.5, resend_s=0.2)


@contextlib.contextmanager
def two_nodes(**options):
    """A publisher, and a link to its node."""
    with edgebus.Node("a", insecure=True) as server, edgebus.Node("b", insecure=True, **options) as device:
        yield Publisher(server), device.connect(server.bind("tcp://127.0.0.1:0"))


def until(condition, timeout_s=10.0):
    """Wait for something that other threads bring about."""
    end_at = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_at, "it did not happen in time"
        threading.Event().wait(0.005)


def test_subscriber_gets_what_is_there_and_what_comes():
    with two_nodes() as (publisher, link):
        publisher.publish("prices", "tea", b"3")
        with subscribe(link, "prices", timeout_s=5) as prices:
            assert (prices.get("tea"), prices.get("rum"), prices.get("rum", b"?")) == (b"3", None, b"?")
            assert prices.next(1) == Changed("tea", b"3", 1)
            publisher.publish("prices", "rum", b"7")
            publisher.unpublish("prices", "tea")
            assert [prices.next(5), prices.next(5)] == [Changed("rum", b"7", 2), Removed("tea")]
            assert prices.next(0.01) is None
            assert prices.synced
            assert ("tea" in prices, "rum" in prices, len(prices)) == (False, True, 1)
            assert publisher.snapshot("prices") == prices.snapshot() == {"rum": b"7"}
            assert publisher.num_subscribers("prices") == 1
        until(lambda: publisher.num_subscribers("prices") == 0)


def test_iteration_ends_when_another_thread_closes():
    with two_nodes() as (publisher, link):
        publisher.publish("t", "k", b"0")
        subscription = subscribe(link, "t", timeout_s=5)
        seen = []

        def read():
            seen.extend(event.value for event in subscription)

        thread = threading.Thread(target=read)
        thread.start()
        until(lambda: seen == [b"0"])
        publisher.publish("t", "k", b"1")
        until(lambda: seen == [b"0", b"1"])
        subscription.close()
        thread.join(5)
        assert not thread.is_alive()
        assert subscription.get("k") == b"1"
        assert subscription.next(0.1) is None


def test_topic_that_is_not_published_yet_is_waited_for():
    with two_nodes() as (publisher, link):
        with pytest.raises(edgebus.DeadlineExceeded, match=r"later at tcp://.* not synced after 0\.2 s \(link up\)"):
            subscribe(link, "later", timeout_s=0.2)
        with subscribe(link, "later") as later:
            assert not later.synced
            publisher.declare("later")
            later.wait_synced(5)
            assert later.snapshot() == {}
            publisher.publish("later", "k", b"v")
            assert later.next(5) == Changed("k", b"v", 1)


def test_subscriber_that_does_not_look_costs_nothing_and_is_given_latest_values():
    """20 MB are published into a window of 512 KiB that nobody reads."""
    with two_nodes() as (publisher, link), subscribe(link, "t") as slow:
        publisher.publish("t", "first", b"1")
        assert slow.next(5) == Changed("first", b"1", 1)
        for n in range(400):
            publisher.publish("t", f"k{n % 10}", n.to_bytes(2, "big") + bytes(50_000))
        until(lambda: slow.snapshot() == publisher.snapshot("t"))
        assert slow.counts.applied < 100
        assert slow.counts.gaps == 0


def test_changes_wait_as_the_latest_of_each_key():
    with two_nodes() as (publisher, link):
        publisher.publish("t", "a", b"0")
        with subscribe(link, "t", timeout_s=5) as subscription:
            for n in range(1, 50):
                publisher.publish("t", "a", b"%d" % n)
                publisher.publish("t", "b", b"%d" % n)
            until(lambda: subscription.get("b") == b"49")
            assert [subscription.next(0), subscription.next(0), subscription.next(0)] == [
                Changed("a", b"49", 98), Changed("b", b"49", 99), None,
            ]  # fmt: skip


def test_changes_that_nobody_takes_are_bounded_the_oldest_go_and_are_counted(monkeypatch):
    monkeypatch.setattr("edgebus.subscribing._MOST_EVENTS", 3)
    with two_nodes() as (publisher, link), subscribe(link, "t") as subscription:
        for n in range(8):
            publisher.publish("t", f"k{n}", b"")
        until(lambda: len(subscription.snapshot()) == 8)
        assert subscription.num_forgotten == 5
        assert [subscription.next(0).key for _ in range(3)] == ["k5", "k6", "k7"]
        assert subscription.next(0) is None


def test_publisher_that_starts_again_is_followed_by_differences():
    with edgebus.Node("b", insecure=True, limits=QUICK) as device:
        with edgebus.Node("a", insecure=True) as server:
            endpoint = server.bind("tcp://127.0.0.1:0")
            publisher = Publisher(server)
            for key in "abc":
                publisher.publish("t", key, b"1")
            subscription = subscribe(device.connect(endpoint), "t", timeout_s=5)
            assert [subscription.next(1).key for _ in range(3)] == ["a", "b", "c"]
        until(lambda: not subscription.synced)
        assert subscription.snapshot() == dict.fromkeys("abc", b"1"), "the last known values stay"
        with edgebus.Node("a", insecure=True) as server:
            server.bind(endpoint)
            publisher = Publisher(server)
            publisher.publish("t", "b", b"1")
            publisher.publish("t", "c", b"2")
            assert {subscription.next(10), subscription.next(10)} == {Changed("c", b"2", 2), Removed("a")}
            subscription.wait_synced(5)
            assert subscription.snapshot() == {"b": b"1", "c": b"2"}
            subscription.close()


def test_many_subscribers_and_publishing_threads_agree_in_the_end():
    with edgebus.Node("a", insecure=True) as server:
        endpoint, publisher = server.bind("tcp://127.0.0.1:0"), Publisher(server)
        publisher.declare("t")
        with contextlib.ExitStack() as stack:
            subscriptions = []
            for n in range(4):
                device = stack.enter_context(edgebus.Node(f"d{n}", insecure=True))
                subscriptions.append(subscribe(device.connect(endpoint), "t", timeout_s=5))

            def work(n):
                for i in range(150):
                    publisher.publish("t", f"{n}-{i % 7}", b"%d" % i)
                    if i % 5 == 0:
                        publisher.unpublish("t", f"{n}-{i % 3}")

            threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(20)
            publisher.publish("t", "end", b"")
            for subscription in subscriptions:
                shown = {}
                while "end" not in shown:
                    event = subscription.next(10)
                    assert event is not None
                    if isinstance(event, Changed):
                        shown[event.key] = event.value
                    else:
                        shown.pop(event.key, None)
                assert shown == subscription.snapshot() == publisher.snapshot("t")
                assert subscription.counts.gaps == 0
                subscription.close()


def test_largest_value_arrives_and_a_peer_with_small_frames_is_told():
    small = edgebus.Limits(max_frame_bytes=4096, max_pending_bytes=8192)
    with two_nodes(limits=small) as (publisher, link):
        for n in range(40):
            publisher.publish("t", f"k{n}", bytes(1000))
        with subscribe(link, "t", timeout_s=5) as subscription:
            assert len(subscription) == 40
            publisher.publish("t", "large", bytes(MAX_VALUE_BYTES))
            with pytest.raises(edgebus.Refused, match="the peer accepts 4096 B") as caught:
                [subscription.next(5) for _ in range(41)]
            assert caught.value.code == "too_large"
            with pytest.raises(edgebus.Refused):
                subscription.get("k1")
    with two_nodes() as (publisher, link):
        publisher.publish("t", "large", bytes(MAX_VALUE_BYTES))
        with subscribe(link, "t", timeout_s=5) as subscription:
            assert len(subscription.get("large")) == MAX_VALUE_BYTES


def test_topic_over_the_subscribers_bounds_ends_the_subscription():
    with two_nodes() as (publisher, link):
        for key in "abc":
            publisher.publish("t", key, bytes(100))
        with pytest.raises(BadState, match="more than 2 keys"):
            subscribe(link, "t", timeout_s=5, max_keys=2)


@pytest.mark.parametrize("payload", [b"", b"\x91\x01", encode(Part(b"A" * 8, 1, None, 5, 4, 3, []))])
def test_publisher_that_sends_nonsense_is_an_error_not_a_crash(payload):
    with edgebus.Node("a", insecure=True) as server, edgebus.Node("b", insecure=True) as device:
        server.handle(topic_service("t"), lambda request: request.try_push(payload) and held.append(request))
        held = []
        link = device.connect(server.bind("tcp://127.0.0.1:0"))
        with pytest.raises(BadState, match="t at tcp://"):
            subscribe(link, "t", timeout_s=5)


def test_lost_part_is_asked_for_again():
    """A publisher that skips a part: the gap shows, another attempt repairs it."""
    lost = threading.Event()

    class Lossy(Publisher):
        def _feed(self, topic, subscriber):
            if topic.publication.head == 2 and subscriber.cursor.attempt == 1:
                with topic.lock:
                    _, subscriber.cursor = topic.publication.next_part(subscriber.cursor)
                lost.set()
            else:
                super()._feed(topic, subscriber)

    with edgebus.Node("a", insecure=True) as server, edgebus.Node("b", insecure=True) as device:
        publisher = Lossy(server)
        publisher.publish("t", "a", b"1")
        with subscribe(device.connect(server.bind("tcp://127.0.0.1:0")), "t", timeout_s=5) as subscription:
            assert subscription.next(5).key == "a"
            until = time.monotonic() + 5
            while any(each.feeding for each in publisher._topics["t"].subscribers) and time.monotonic() < until:
                time.sleep(0.001)  # else whoever pushed the first part goes on with the second
            publisher.publish("t", "b", b"2")
            assert lost.wait(5)
            publisher.publish("t", "c", b"3")
            assert [subscription.next(5).key for _ in range(2)] == ["b", "c"]
            assert (subscription.counts.gaps, subscription.synced) == (1, True)


def test_requests_that_are_no_subscription_are_refused():
    with two_nodes() as (publisher, link):
        publisher.declare("t")
        with pytest.raises(edgebus.Refused, match=r"edgebus\.state/t is a stream"):
            link.request(topic_service("t"))
        with pytest.raises(edgebus.Refused, match="not a valid Subscribe"):
            link.stream(topic_service("t"), b"\x93").result()
        assert publisher.num_subscribers("t") == 0


def test_publisher_is_bounded_in_topics_and_subscribers():
    with edgebus.Node("a", insecure=True) as server, edgebus.Node("b", insecure=True) as device:
        publisher = Publisher(server, max_topics=1, max_subscribers=1)
        publisher.publish("t", "k", b"v")
        with pytest.raises(edgebus.ConfigError, match="1 topics, no room for 'u'"):
            publisher.declare("u")
        link = device.connect(server.bind("tcp://127.0.0.1:0"))
        first = subscribe(link, "t", timeout_s=5)
        second = subscribe(link, "t")
        assert second.next(0.3) is None
        first.close()
        second.wait_synced(10)
        second.close()
        publisher.unpublish("nothing", "k")
        assert (publisher.snapshot("nothing"), publisher.num_subscribers("nothing")) == ({}, 0)


@pytest.mark.parametrize("topic", ["", "t" * 51, "\udce9"])
def test_impossible_topic_is_a_value_error(topic):
    with two_nodes() as (publisher, link):
        with pytest.raises(ValueError, match=r"topic must have 1\.\.|does not encode"):
            publisher.publish(topic, "k", b"")
        with pytest.raises(ValueError, match=r"topic must have 1\.\.|does not encode"):
            subscribe(link, topic)


def test_subscription_of_a_closed_node_ends_as_node_closed():
    with two_nodes() as (publisher, link):
        publisher.publish("t", "k", b"v")
        subscription = subscribe(link, "t", timeout_s=5)
        link.close()
        with pytest.raises(edgebus.NodeClosed):
            [subscription.next(5) for _ in range(2)]


def test_subscription_adds_no_thread():
    with two_nodes() as (publisher, link):
        before = threading.active_count()
        publisher.declare("t")
        with subscribe(link, "t", timeout_s=5):
            assert threading.active_count() == before


def test_doctests_hold():
    import doctest

    assert doctest.testmod(topics) == (0, 1)
