"""Devices and a server on a virtual network: whatever is lost, repeated, reordered or restarted, the answer stands."""

from __future__ import annotations

import pytest

import edgebus
from edgebus.payloads import decode, encode
from edgebus.testing import SimNetwork
from sled import messages
from sled.device import Generation, State
from sled.messages import Opened, Verdict
from sled.run.server import TargetServer
from sled.server import Server
from sled.testing import ToyDrafter, ToyTarget
from sled.types import Sampling
from sled.window import Window
from tests.sled.drafting import submit

PROMPTS = ([5, 6, 7], [9, 9], [30, 31, 32, 33])
SAMPLED = Sampling(temperature=0.9, top_k=30, seed=5)
NUM_TOKENS = 25
FORWARD_S = 0.03


class SimServer:
    """The server's shell, driven by the virtual clock."""

    def __init__(self, net: SimNetwork) -> None:
        self._net = net
        self.node = net.node("server", self.handle)
        self.start()

    def start(self) -> None:
        self._server = TargetServer(None, ToyTarget(), clock=self._net.clock)
        self._stepping = False

    def handle(self, request) -> None:
        self._server.handle(request)
        if not self._stepping:
            self._stepping = True
            server = self._server
            self._net.call_later(FORWARD_S, lambda: self._step(server))

    def _step(self, server) -> None:
        if server is not self._server:
            return  # it crashed meanwhile
        self._stepping = server.step()
        if self._stepping:
            self._net.call_later(FORWARD_S, lambda: self._step(server))

    def crash(self) -> None:
        self.start()
        self._net.restart(self.node)


class SimDevice:
    """The device's machine with a shell that asks again whenever a request is lost."""

    def __init__(self, net, server, number, *, timeout_s=1.5) -> None:
        self._net, self._timeout_s = net, timeout_s
        self._link = net.connect(net.node(f"device{number}"), server.node)
        self._drafter = ToyDrafter(ToyTarget(), error=0.3, seed=number)
        self._drafter.start(SAMPLED, len(PROMPTS[number]))
        self.machine = Generation(
            bytes([number] * 8),
            PROMPTS[number],
            chat=False,
            sampling=SAMPLED,
            max_tokens=NUM_TOKENS,
            window=Window(5),
            max_reopens=50,
        )
        self.asked_again = 0
        self._pending = self._request = None
        self._turn()

    def _turn(self) -> None:
        if self._pending is not None and self._pending.done():
            self._answered()
        if self._pending is None and self.machine.state is not State.DONE:
            self._ask()
        if self.machine.state is not State.DONE:
            self._net.call_later(0.01, self._turn)

    def _ask(self) -> None:
        machine = self.machine
        if machine.state is State.OPENING:
            self._request = (messages.OPEN, encode(machine.open_request()))
        elif not machine.chain.flights:
            limit = machine.draft_limit()
            self._request = (
                messages.VERIFY,
                encode(submit(machine, list(self._drafter.draft(machine.history.tokens, limit)))),
            )
        else:
            self.asked_again += 1  # the same round once more: its position is its key
        self._pending = self._link.send_request(*self._request, timeout_s=self._timeout_s)

    def _answered(self) -> None:
        pending, self._pending = self._pending, None
        try:
            payload = pending.result().payload
        except (edgebus.LinkLost, edgebus.DeadlineExceeded):
            return
        except edgebus.Refused as refused:
            if refused.code != "session_unknown" or not self.machine.session_lost():
                raise
            return
        if self.machine.state is State.OPENING:
            self.machine.opened(decode(Opened, payload))
        else:
            self.machine.verdict(decode(Verdict, payload))


def run(seed, *, crashes=(), **faults):
    """Three devices to the end of their answers."""
    with SimNetwork(seed, **faults) as net:
        server = SimServer(net)
        devices = [SimDevice(net, server, number) for number in range(len(PROMPTS))]
        for at in crashes:
            net.call_later(at, server.crash)
        assert net.run_until(lambda: all(d.machine.state is State.DONE for d in devices), 600.0)
        right = [ToyTarget().plain_answer(prompt, SAMPLED, NUM_TOKENS) for prompt in PROMPTS]
        assert [d.machine.answer for d in devices] == right
        return devices, net.trace


def test_quiet_network_needs_no_second_asking():
    devices, _ = run(1)
    assert [d.asked_again for d in devices] == [0, 0, 0]


@pytest.mark.parametrize("seed", range(30))
def test_loss_duplication_and_reordering_do_not_change_the_answer(seed):
    run(seed, loss=0.15, duplicate=0.2, delay_s=(0.001, 0.4))


@pytest.mark.parametrize("seed", range(15))
def test_crashes_of_the_server_do_not_change_the_answer(seed):
    run(seed, loss=0.05, duplicate=0.1, crashes=(0.3 + seed / 50, 1.1, 2.0))


def test_lost_verdicts_are_asked_for_again():
    """With deadlines shorter than some delays rounds are repeated at the application's level too."""
    again = sum(d.asked_again for seed in range(5) for d in run(seed, loss=0.4, delay_s=(0.001, 0.6))[0])
    assert again > 0


def test_same_seed_replays_exactly():
    assert run(3, loss=0.2, duplicate=0.2)[1] == run(3, loss=0.2, duplicate=0.2)[1]


def test_server_that_samples_by_round_instead_of_position_is_found_out(monkeypatch):
    """The power of the tests above: noise keyed by anything but the position fails them."""
    right_step, rounds = Server.next_step, [0]

    def by_round(self, **asked):
        rounds[0] += 1
        for session in self.sessions.values():
            session.sampling = Sampling(SAMPLED.temperature, SAMPLED.top_k, SAMPLED.top_p, SAMPLED.seed + rounds[0])
        return right_step(self, **asked)

    monkeypatch.setattr(Server, "next_step", by_round)
    with pytest.raises(AssertionError):
        run(1, loss=0.15)
