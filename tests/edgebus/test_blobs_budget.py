"""The store beside a model of it: whatever is done in whatever order, the budget holds and the longest unused goes."""

from __future__ import annotations

import random
import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edgebus.blobs import BlobStore, BlobStoreFull, manifest_of

CHUNK = 4096
BUDGET = 12 * CHUNK
SIZES = [0, 1, CHUNK, CHUNK + 1, 3 * CHUNK, 5 * CHUNK, 11 * CHUNK, 12 * CHUNK]
CONTENTS = [random.Random(number).randbytes(size) for number, size in enumerate(SIZES)]
MANIFESTS = [manifest_of(content, CHUNK) for content in CONTENTS]
NUMBERS = st.integers(0, len(CONTENTS) - 1)


def cost(number):
    return MANIFESTS[number].size + MANIFESTS[number].head.manifest_bytes


class StoreBesideModel(RuleBasedStateMachine):
    """Only whole blobs are in the model; partial ones have rules of their own below."""

    def __init__(self):
        super().__init__()
        self.path = Path(tempfile.mkdtemp())
        self.store = BlobStore(self.path, BUDGET)
        self.order = []  # numbers, longest unused first
        self.held = {}

    def teardown(self):
        self.held.clear()
        shutil.rmtree(self.path)

    def make_room(self, number):
        """What the store must evict for this one, oldest first; None if it cannot fit."""
        short = sum(map(cost, self.order)) + cost(number) - BUDGET
        gone = []
        for each in self.order:
            if short <= 0:
                break
            if each not in self.held:
                gone.append(each)
                short -= cost(each)
        return gone if short <= 0 else None

    def use(self, number):
        self.order.remove(number)
        self.order.append(number)

    @rule(number=NUMBERS)
    def put(self, number):
        expected = [] if number in self.order else self.make_room(number)
        try:
            self.store.put(CONTENTS[number], chunk_bytes=CHUNK)
        except BlobStoreFull:
            assert expected is None
            return
        assert expected is not None
        self.order = [each for each in self.order if each not in expected and each != number] + [number]

    @rule(number=NUMBERS)
    def fetch(self, number):
        """In pieces, in any order, as a fetch writes them."""
        if number in self.order:
            return
        expected = self.make_room(number)
        try:
            partial = self.store.begin(MANIFESTS[number])
        except BlobStoreFull:
            assert expected is None
            return
        assert expected is not None
        chunks = list(range(MANIFESTS[number].num_chunks))
        random.Random(number).shuffle(chunks)
        for chunk in chunks:
            partial.write(chunk, CONTENTS[number][chunk * CHUNK :][:CHUNK])
            self.within_budget()
        partial.finish().close()
        partial.close()
        self.order = [each for each in self.order if each not in expected] + [number]

    @rule(number=NUMBERS, keep=st.booleans())
    def get(self, number, keep):
        blob = self.store.get(MANIFESTS[number].blob_id)
        assert (blob is not None) == (number in self.order)
        if blob is None:
            return
        assert blob.view == CONTENTS[number]
        self.use(number)
        if keep and blob.size:  # an empty blob is nothing that could be in use
            self.held[number] = blob.view
        blob.close()

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def let_go(self, data):
        del self.held[data.draw(st.sampled_from(sorted(self.held)))]

    @rule(number=NUMBERS)
    def delete(self, number):
        assert self.store.delete(MANIFESTS[number].blob_id) == (number in self.order)
        if number in self.order:
            self.order.remove(number)
        self.held.pop(number, None)

    @rule()
    def restart(self):
        self.store = BlobStore(self.path, BUDGET)

    @invariant()
    def within_budget(self):
        assert sum(file.stat().st_size for file in self.path.iterdir()) <= BUDGET

    @invariant()
    def same_order(self):
        assert self.store.ids() == [MANIFESTS[number].blob_id for number in self.order]

    @invariant()
    def held_views_are_right(self):
        assert all(view == CONTENTS[number] for number, view in self.held.items())


StoreBesideModel.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestStoreBesideModel = StoreBesideModel.TestCase
