"""Arrays between processes of one host through shared memory: a Pool puts them, a Mapper views them in place.

Layout, checks and lifetimes: docs/spec/bus-shm.md. The link says which blocks and which leases; this package owns
the memory. Nothing here has a name in a file system: what is mapped by nobody is gone, whoever was killed.
"""

from edgebus.shm.ledger import Ledger
from edgebus.shm.mapper import Mapper, MapperStats
from edgebus.shm.numbers import Numbers
from edgebus.shm.pool import Block, Pool, PoolStats
from edgebus.shm.processes import process_alive, process_start_time
from edgebus.shm.segments import COMMIT_BYTES, SegmentInfo, SegmentUnavailable, available, host_id

__all__ = [
    "COMMIT_BYTES",
    "Block",
    "Ledger",
    "Mapper",
    "MapperStats",
    "Numbers",
    "Pool",
    "PoolStats",
    "SegmentInfo",
    "SegmentUnavailable",
    "available",
    "host_id",
    "process_alive",
    "process_start_time",
]
