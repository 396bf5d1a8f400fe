"""What a drafter proposes, as a device that keeps to a window would send it."""

from sled.law import unpacked
from sled.pace import pace_for
from sled.proposal import Proposal
from sled.proposal import proposals as proposals_of
from sled.window import Window

WIDE = Window(64)


def proposals(drafter, text, limit, window=WIDE):
    pace, taken = pace_for(window), []
    for one in proposals_of(drafter.draft(text, limit)):
        if len(taken) >= limit or not pace.more([each.confidence for each in taken], one.confidence, []):
            break
        taken.append(one)
    return taken


def drafts(drafter, text, limit, window=WIDE):
    return [one.token for one in proposals(drafter, text, limit, window)]


def send(machine, drafts):
    """The round of these proposals, in place of what was drafted before."""
    machine.chain.clear()
    machine.chain.proposals += drafts
    return machine.submit(len(drafts))


def submit(machine, tokens, law=None):
    """The round of these tokens, sampled from this law."""
    laws = unpacked(law) if law is not None else [None] * len(tokens)
    return send(machine, [Proposal(token, 1.0, one) for token, one in zip(tokens, laws, strict=True)])
