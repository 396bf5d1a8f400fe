"""Small parts of `sled api`: turns, the way from threads to the loop, addresses and tokens."""

from __future__ import annotations

import asyncio
import threading

import pytest

from edgebus.errors import BindError, ConfigError, KeyFileError
from sled.api.asks import Wanted
from sled.api.errors import as_api_error
from sled.api.guard import Access, hosts_of
from sled.api.http import listen
from sled.api.outbox import Outbox
from sled.api.pool import Job
from sled.api.serve import check_exposure, read_address, read_tokens
from sled.api.turns import Turns
from sled.errors import ParameterError, PromptTooLong, ServerBusy, TargetChanged
from sled.types import Sampling


def test_requests_take_turns_answer_by_answer():
    turns = Turns(3)
    assert turns.add(["a1", "a2", "a3"])
    assert turns.add(["b1", "b2"])
    assert turns.add(["c1"])
    assert not turns.add(["d1"])
    assert turns.add(["d1"], now=True)
    turns.drop(lambda job: job in ("b2", "d1"))
    assert [turns.take() for _ in range(6)] == ["a1", "b1", "c1", "a2", "a3", None]


def test_outbox_holds_a_thread_up_until_there_is_room_and_lets_it_go_when_closed():
    async def scenario():
        outbox, put = Outbox(asyncio.get_running_loop(), size=2), []
        thread = threading.Thread(target=lambda: put.extend(outbox.put(i) for i in range(5)))
        thread.start()
        found = []
        while len(found) < 4:
            batch = await outbox.take()
            assert 1 <= len(batch) <= 2
            found += batch
        await asyncio.to_thread(thread.join, 10)
        assert put == [True] * 5
        assert found + (await outbox.take() if len(found) < 5 else []) == list(range(5))
        full = Outbox(asyncio.get_running_loop(), size=1)
        assert full.put(1)
        stuck = threading.Thread(target=lambda: put.append(full.put(2)))
        stuck.start()
        full.close()
        await asyncio.to_thread(stuck.join, 10)
        assert put[-1] is False
        assert await full.take() == []

    asyncio.run(scenario())


def test_an_answer_whose_client_left_before_its_device_came_is_not_begun():
    async def main():
        outbox = Outbox(asyncio.get_running_loop())
        job = Job(Wanted(0, "hello", Sampling(), 1, (), -1), outbox)
        outbox.close()
        job.cancel()
        begun: list[str] = []

        class Silent:
            def events(self):
                begun.append("asked")
                yield from ()

            def cancel(self):
                begun.append("cancelled")

            def close(self):
                begun.append("closed")

        job.give(Silent())
        assert begun == ["closed"]

    asyncio.run(main())


def test_outbox_whose_loop_has_ended_takes_nothing():
    outbox = asyncio.run(_outbox())
    assert not outbox.closed
    outbox.put(1)
    assert not outbox.put(2)


async def _outbox():
    return Outbox(asyncio.get_running_loop())


@pytest.mark.parametrize(
    ("text", "found"),
    [("127.0.0.1:8000", ("127.0.0.1", 8000)), ("[::1]:0", ("::1", 0)), ("localhost:80", ("localhost", 80))],
)
def test_address_is_host_and_port(text, found):
    assert read_address(text) == found


@pytest.mark.parametrize("text", ["", "8000", ":8000", "localhost", "localhost:http", "localhost:70000", "h:-1", "h:²"])
def test_address_that_is_none_is_refused(text):
    with pytest.raises(ConfigError, match="HOST:PORT"):
        read_address(text)


def test_tokens_are_read_from_a_file_that_nobody_else_reads(tmp_path):
    path = tmp_path / "tokens"
    path.write_text("# two apps\n\na-token-of-thirty-two-characters\nanother-token-of-some-length\n")
    path.chmod(0o600)
    assert read_tokens(path) == ("a-token-of-thirty-two-characters", "another-token-of-some-length")
    path.chmod(0o640)
    with pytest.raises(KeyFileError, match="chmod 600"):
        read_tokens(path)
    for text in ("", "# none\n", "short\n", "two words of enough length\n", "é" * 30):
        path.write_text(text)
        path.chmod(0o600)
        with pytest.raises(KeyFileError):
            read_tokens(path)
    with pytest.raises(KeyFileError, match="cannot read"):
        read_tokens(tmp_path / "missing")


def test_a_long_file_of_tokens_is_read_to_its_end_or_refused(tmp_path):
    """What stood behind 64 KiB was no token, and whoever had it was told that it is wrong."""
    path = tmp_path / "tokens"
    tokens = [f"token-number-{number:012d}" for number in range(10_000)]
    path.write_text("\n".join(tokens))
    path.chmod(0o600)
    assert read_tokens(path) == tuple(tokens)
    path.write_text("\n".join(tokens * 5))
    with pytest.raises(KeyFileError, match=r"over 1 MiB.*in use"):
        read_tokens(path)


@pytest.mark.net
def test_others_than_this_machine_need_a_token():
    with listen("127.0.0.1", 0) as here, listen("0.0.0.0", 0) as everywhere:  # bound, and never served
        check_exposure(here, Access())
        check_exposure(everywhere, Access(("a-token-of-thirty-two-characters",)))
        with pytest.raises(ConfigError, match="--token-file"):
            check_exposure(everywhere, Access())
        with pytest.raises(BindError, match="choose another"):
            listen("127.0.0.1", here.getsockname()[1])


def test_hosts_are_compared_without_port_case_and_dot():
    access = Access(hosts=hosts_of(["Chat.Local:8000", "::1"]))
    assert access.hosts == {"chat.local"}
    assert access.host_is_ours("chat.local.:99")
    assert not access.host_is_ours("chat.local.evil")


def test_failures_have_the_status_that_says_who_can_do_something():
    table = {
        ParameterError("bad"): (400, None),
        PromptTooLong("long"): (400, "context_length_exceeded"),
        ServerBusy("busy", 3.2): (503, "server_busy"),
        TargetChanged("other"): (503, "target_changed"),
        KeyError("secret"): (500, "internal_error"),
    }
    for error, (status, code) in table.items():
        told = as_api_error(error)
        assert (told.status, told.code) == (status, code)
        assert "secret" not in told.message
    assert as_api_error(ServerBusy("busy", 3.2)).headers == {"retry-after": "3"}
