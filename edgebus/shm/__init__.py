"""Arrays between processes of one host through shared memory: a Pool puts them, a Mapper views them in place.

Layout, checks and lifetimes: docs/spec/bus-shm.md. The link says which blocks and which leases; this package owns
the memory. Nothing here has a name in a file system: what is mapped by nobody is gone, whoever was killed.
"""

from edgebus.shm.board import BOARD_BYTES, ORDERED, Board
from edgebus.shm.ledger import Ledger
from edgebus.shm.mapper import Mapper, MapperStats
from edgebus.shm.numbers import Numbers
from edgebus.shm.pipes import PipeNames, Pipes, find_pipes, make_pipes
from edgebus.shm.pool import Block, Pool, PoolBusy, PoolStats
from edgebus.shm.processes import process_alive, process_start_time
from edgebus.shm.segments import COMMIT_BYTES, HEADER_BYTES, SegmentInfo, SegmentUnavailable, available, host_id

__all__ = [
    "BOARD_BYTES",
    "COMMIT_BYTES",
    "HEADER_BYTES",
    "ORDERED",
    "Block",
    "Board",
    "Ledger",
    "Mapper",
    "MapperStats",
    "Numbers",
    "PipeNames",
    "Pipes",
    "Pool",
    "PoolBusy",
    "PoolStats",
    "SegmentInfo",
    "SegmentUnavailable",
    "available",
    "find_pipes",
    "host_id",
    "make_pipes",
    "process_alive",
    "process_start_time",
]
