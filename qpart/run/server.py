"""The server's shell: requests from the bus to the models, answers back."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from edgebus import Inbox, Request
from edgebus.arrays import Array
from edgebus.payloads import Payload, decode, encode
from edgebus.serving import refuse, reply
from qpart import messages
from qpart.errors import Infeasible, RequestError, ShapeMismatch
from qpart.messages import Ask, Chosen, Described, Fetch, InfeasibleInfo, Infer
from qpart.run.served import ServedModel

log = logging.getLogger(__name__)

_IDLE_WAIT_S = 0.2
_P = TypeVar("_P", bound=Payload)
Answer = tuple[bytes, Sequence[Array]]


class UnknownModelAsked(Exception):
    """A device asks for a model that is not served here."""


class PlanServer:
    """Plans for devices, ships heads, runs tails; `run` is its loop.

    It keeps nothing about devices: any server with the same artefacts can answer the next request.

    Args:
        inbox: where the services of `qpart.messages` arrive, `node.serve(*messages.SERVICES)`.
        models: what is served, each name once.
    """

    def __init__(self, inbox: Inbox, models: Sequence[ServedModel]) -> None:
        self._inbox = inbox
        self._models = {model.artefact.model_id: model for model in models}
        self._described = encode(Described(tuple(model.info for model in models)))
        self._stopping = False

    def run(self) -> None:
        """Serve until `stop` is called. A request that fails costs itself, never the loop."""
        try:
            while not self._stopping:
                request = self._inbox.get(timeout_s=_IDLE_WAIT_S)
                if request is not None:
                    self.handle(request)
        finally:
            self._inbox.close()

    def stop(self) -> None:
        """End `run` after the request in hand; safe from signal handlers and other threads."""
        self._stopping = True

    def handle(self, request: Request) -> None:
        """Answer or refuse one request."""
        try:
            payload, arrays = self._answer(request)
        except UnknownModelAsked as error:
            refuse(request, "unknown_model", str(error))
        except Infeasible as error:
            info = encode(InfeasibleInfo(error.constraint, error.nearest_accuracy))
            refuse(request, "infeasible", str(error), info)
        except (RequestError, ShapeMismatch) as error:
            refuse(request, "invalid", " ".join(str(error).split()))
        except Exception:
            log.exception("%s failed", request.service)
            refuse(request, "internal", "the server failed on this request; its log has the reason")
        else:
            reply(request, payload, arrays)

    def _answer(self, request: Request) -> Answer:
        match request.service:
            case messages.DESCRIBE:
                return self._described, ()
            case messages.PLAN:
                ask = _decoded(Ask, request.payload)
                return encode(self._model(ask.model_id).plan(ask.request, ask.cached)), ()
            case messages.SEGMENT:
                chosen = _decoded(Chosen, request.payload)
                return self._model(chosen.model_id).segment(chosen), ()
            case messages.PIECES:
                return b"", self._chunks(_decoded(Fetch, request.payload))
            case _:
                infer = _decoded(Infer, request.payload)
                return b"", [self._model(infer.model_id).tail.answer(infer, request.arrays)]

    def _chunks(self, fetch: Fetch) -> list[Array]:
        if len(set(fetch.pieces)) != len(fetch.pieces):
            raise RequestError("a piece is asked for twice; ask once")
        model, span = self._model(fetch.model_id), slice(fetch.offset, fetch.offset + messages.CHUNK_BYTES)
        return [np.frombuffer(model.piece(address)[span], np.uint8) for address in fetch.pieces]

    def _model(self, model_id: bytes) -> ServedModel:
        if model_id not in self._models:
            raise UnknownModelAsked(
                f"model {model_id.hex()} is not served here (any more): connect again and ask for a plan"
            )
        return self._models[model_id]


def _decoded(kind: type[_P], payload: bytes) -> _P:
    try:
        return decode(kind, payload)
    except ValueError as error:
        raise RequestError(str(error)) from None
