"""What a server ships of its models: segments, and pieces as blobs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

import edgebus
from edgebus.blobs import BlobServer, serve_blobs
from edgebus.blobs.manifest import BlobId, Manifest, manifest_of
from edgebus.payloads import encode
from qpart.artefact import Artefact
from qpart.errors import ArtefactError, ShapeMismatch
from qpart.messages import MARK_BYTES, Chosen, Live, Segment, segment_of
from qpart.pieces import Data, addresses_of, encode_pieces, steps_to
from qpart.segment import split_addresses
from qpart.tables import WIDTHS

Sign = Callable[[bytes], bytes]


class Published:
    """Segments and pieces of one model; the same artefact gives the same ones on any server.

    It is a source of blobs (`edgebus.blobs.BlobSource`), which any thread may ask. A layer's pieces are made when the
    first of them is asked for.

    Args:
        artefact: the model.
    """

    def __init__(self, artefact: Artefact) -> None:
        self._artefact = artefact
        self._places = {
            address.hex(): (node, bits)
            for node, row in artefact.piece_ids.items()
            for bits, address in zip(WIDTHS, row, strict=True)
            if address
        }
        self._marks = {bytes.fromhex(address)[:MARK_BYTES]: place for address, place in self._places.items()}
        self._made: dict[str, tuple[Manifest, bytes]] = {}
        self._lock = threading.Lock()

    def places(self, marks: bytes) -> frozenset[tuple[int, int]]:
        """The (node, bits) of pieces that a device says it has; pieces of other models do not matter."""
        found = (self._marks.get(marks[at : at + MARK_BYTES]) for at in range(0, len(marks), MARK_BYTES))
        return frozenset(place for place in found if place is not None)

    def segment(self, chosen: Chosen) -> bytes:
        """The segment of a choice, encoded.

        Raises:
            ShapeMismatch: the choice does not fit the model.
        """
        artefact, network, cut = self._artefact, self._artefact.network, chosen.cut
        nodes = [i for i in network.parametric if i < cut]
        values = network.live[cut] if cut <= network.num_nodes else ()
        fits = len(chosen.weight_bits) == len(nodes) and len(chosen.live_bits) == len(values)
        if cut > network.num_nodes or not fits or {*chosen.weight_bits, *chosen.live_bits} - {*WIDTHS}:
            raise ShapeMismatch(
                f"cut {cut} with {len(chosen.weight_bits)} and {len(chosen.live_bits)} widths does not fit the model; "
                "ask for a plan"
            )
        pieces = tuple(self._addresses(node, bits) for node, bits in zip(nodes, chosen.weight_bits, strict=True))
        live = tuple(
            Live(value, bits, *artefact.ranges[value][WIDTHS.index(bits)])
            for value, bits in zip(values, chosen.live_bits, strict=True)
        )
        return encode(segment_of(network, artefact.model_id, cut, chosen.weight_bits, pieces, live))

    def pieces(self, segment: Segment) -> dict[bytes, Data]:
        """The contents of all pieces of a segment of this model, by address."""
        addresses = [address for row in segment.pieces for address in split_addresses(row)]
        return {address: self._find(address.hex())[1] for address in addresses}

    def blob_ids(self) -> Iterable[str]:
        """The addresses of all pieces."""
        return self._places.keys()

    def size(self, blob_id: BlobId) -> int | None:
        """Bytes of a piece, None if the model has no such."""
        return self._find(blob_id)[0].size if blob_id in self._places else None

    def manifest(self, blob_id: BlobId) -> Manifest | None:
        """The manifest of a piece.

        Raises:
            ArtefactError: this version quantises otherwise than the one that calibrated the model.
        """
        return self._find(blob_id)[0] if blob_id in self._places else None

    def chunk(self, blob_id: BlobId, index: int) -> bytes | None:
        """A chunk of a piece."""
        if blob_id not in self._places:
            return None
        manifest, content = self._find(blob_id)
        begin = manifest.offset(index)
        return content[begin : begin + manifest.head.chunk_size(index)] if index < manifest.num_chunks else None

    def _addresses(self, node: int, bits: int) -> bytes:
        row, shape = self._artefact.piece_ids[node], self._artefact.parameters[node].weight.size
        return b"".join(row[WIDTHS.index(step.first)] for step in steps_to(shape, bits))

    def _find(self, blob_id: str) -> tuple[Manifest, bytes]:
        with self._lock:
            if blob_id not in self._made:
                self._make(self._places[blob_id][0])
            return self._made[blob_id]

    def _make(self, node: int) -> None:
        contents = encode_pieces(self._artefact.parameters[node])
        if addresses_of(contents) != self._artefact.piece_ids[node]:
            raise ArtefactError(f"{self._artefact.name} was calibrated with another quantiser; calibrate it again")
        for content in filter(None, contents):
            manifest = manifest_of(content)
            self._made[manifest.blob_id] = manifest, content


class PublishedPieces:
    """The pieces of several models as one source of blobs, for `edgebus.blobs.serve_blobs`.

    Args:
        models: what is published.
    """

    def __init__(self, models: Iterable[Published]) -> None:
        self._models = {blob_id: model for model in models for blob_id in model.blob_ids()}

    def size(self, blob_id: BlobId) -> int | None:
        """Bytes of a piece."""
        return None if blob_id not in self._models else self._models[blob_id].size(blob_id)

    def manifest(self, blob_id: BlobId) -> Manifest | None:
        """The manifest of a piece."""
        return None if blob_id not in self._models else self._models[blob_id].manifest(blob_id)

    def chunk(self, blob_id: BlobId, index: int) -> bytes | None:
        """A chunk of a piece."""
        return None if blob_id not in self._models else self._models[blob_id].chunk(blob_id, index)


def serve_pieces(node: edgebus.Node, models: Iterable[Published]) -> BlobServer:
    """Let devices fetch the pieces of these models from a node; close it before the node."""
    return serve_blobs(node, PublishedPieces(models))
