"""What a request that is being served needs of its node: to answer, to push parts, to wait."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from edgebus.arrays import Array
from edgebus.calls import Item
from edgebus.errors import NodeClosed
from edgebus.messages import Block, Message
from edgebus.streams import Frames, Specs

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

    from edgebus.answerer import Answerer
    from edgebus.attached import Attached
    from edgebus.engine import Engine
    from edgebus.express import Express
    from edgebus.loans import Loan


_now = time.monotonic
Shared = tuple[Specs, tuple[Block, ...]]
"""Arrays in shared memory: their specs, and where they lie."""


class Desk(Protocol):
    """Where answers go; a virtual network has one of its own."""

    def now(self) -> float:
        """Monotonic seconds."""

    def answer(self, attached: Attached, answerer: Answerer, request_id: int, message: Message) -> None:
        """Give an answer."""

    def answer_later(self, attached: Attached, answerer: Answerer, request_id: int, message: Message) -> None:
        """Give an answer from the garbage collector, which may come in the middle of anything."""

    def push(
        self, attached: Attached, answerer: Answerer, request_id: int, specs: Specs, frames: Frames
    ) -> int | bool | None:
        """Send a part: its position, False if there is no room now, None if the stream has ended."""

    def share(self, attached: Attached, payload: bytes, arrays: Sequence[Array]) -> Shared | None:
        """Put arrays into memory that the peer sees; None if they have to be sent."""

    def loan(self, attached: Attached, shape: int | tuple[int, ...], dtype: DTypeLike) -> Loan:
        """An array to be filled in place and sent without a copy."""

    def unshare(self, attached: Attached, blocks: Sequence[Block]) -> None:
        """What was put there will not be sent."""

    def when_room(self, answerer: Answerer, request_id: int, callback: Callable[[], object]) -> None:
        """Call back as soon as there is room or the stream has ended."""

    def answer_small(self, attached: Attached, answerer: Answerer, request_id: int, payload: bytes) -> bool:
        """Give a plain small answer the quick way; False if it has to go the usual one."""

    def wait(self, item: Item, until: float) -> bool:
        """Wait, and work the node's sockets meanwhile."""


class NodeDesk:
    """The desk of a real node."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.express: Express | None = None  # which is made later

    def now(self) -> float:
        return _now()

    def answer(self, attached: Attached, answerer: Answerer, request_id: int, message: Message) -> None:
        # After the node is closed the peer has been told already.
        self._engine.runner.do_unless_closed(self._engine.answer, attached, answerer, request_id, message)

    def answer_later(self, attached: Attached, answerer: Answerer, request_id: int, message: Message) -> None:
        self._engine.runner.defer(self._engine.answer, attached, answerer, request_id, message)

    def push(
        self, attached: Attached, answerer: Answerer, request_id: int, specs: Specs, frames: Frames
    ) -> int | bool | None:
        return self._engine.runner.do(self._engine.push, attached, answerer, request_id, specs, frames)

    def share(self, attached: Attached, payload: bytes, arrays: Sequence[Array]) -> Shared | None:
        return self._engine.put_shared(attached, payload, arrays)

    def loan(self, attached: Attached, shape: int | tuple[int, ...], dtype: DTypeLike) -> Loan:
        return self._engine.loan(attached, shape, dtype)

    def unshare(self, attached: Attached, blocks: Sequence[Block]) -> None:
        self._engine.drop_shared(attached, blocks)

    def when_room(self, answerer: Answerer, request_id: int, callback: Callable[[], object]) -> None:
        self._engine.runner.do(self._engine.when_room, answerer, request_id, callback)

    def answer_small(self, attached: Attached, answerer: Answerer, request_id: int, payload: bytes) -> bool:
        if self.express is None:
            self.express = self._engine.express
        try:
            return self.express.give(attached, answerer, request_id, payload)
        except NodeClosed:
            return True

    def wait(self, item: Item, until: float) -> bool:
        return self._engine.runner.wait(item, until)
