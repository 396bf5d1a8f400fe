# Types for the compiled form of sharing.py.
cimport cython

from edgebus.attached cimport Attached, LinkFront, NearLane
from edgebus.shm.board cimport Board
from edgebus.shm.ledger cimport Ledger
from edgebus.shm.mapper cimport Mapper, Place
from edgebus.shm.numbers cimport Numbers
from edgebus.shm.pool cimport Lease, Pool


cdef class Sharing:
    cdef object __weakref__
    cdef public object _wake, near, came_round, _returned, _postponed, _dropped, share
    cdef public dict _ledgers, _numbers, _loans, _probes
    cdef public set _putting, _unsent_loans, _sent_loans
    cdef public Pool _pool
    cdef public Mapper _mapper
    cdef public double _returned_share, report_at, _swept_at
    cdef public long long _from_bytes
    cdef public bint _is_due_soon
    cdef public long _num_untold
    cdef public Attached _lender, _named
    cdef public Ledger _its_ledger
    cdef public Numbers _its_names
    cdef public object _dtype, _shape
    cdef public tuple _specs
    cdef public object _again

    cpdef bint wants(self, Attached attached, long long total) except -1
    @cython.locals(lent=list, put=list, copied=list, blocks=list, pos=cython.Py_ssize_t)
    cpdef put(self, Attached attached, arrays)
    cpdef tuple _described(self, arrays)
    cpdef copied_bytes(self, blocks)
    @cython.locals(names=Numbers)
    cpdef done(self, Attached attached, leases)
    @cython.locals(names=Numbers, near=bint)
    cpdef tuple number(self, Attached attached, header)
    @cython.locals(names=Numbers)
    cpdef bint in_order(self, Attached attached) except -1
    @cython.locals(names=Numbers, first=cython.longlong)
    cpdef long long number_new(self, Attached attached, blocks) except -1
    @cython.locals(names=Numbers)
    cpdef went_round(self, Attached attached)
    cpdef resolve(self, Attached attached, header)
    @cython.locals(board=Board, ledger=Ledger, near=NearLane, place=Place, left=Place)
    cpdef list views(self, Attached attached, list places)
    @cython.locals(attached=Attached, ledger=Ledger)
    cpdef take_back(self, double now)
    @cython.locals(near=NearLane, names=Numbers)
    cpdef bint collect(self, Attached attached, bint thorough=*) except -1
    cpdef Ledger _ledger(self, Attached attached)
    cpdef Numbers _names(self, Attached attached)
    cpdef bint _is_in_put(self) except -1
    @cython.locals(pool=Pool)
    cpdef _give_free(self, Attached attached, list unused, list done)
    cpdef bint _is_much(self) except -1
    @cython.locals(board=Board, near=NearLane)
    cpdef _give_back(self, Attached attached, Ledger ledger, Place place)
    cpdef _view(self, Attached attached, Place place, Ledger ledger)


cdef class _Release:
    cdef public Sharing _sharing
    cdef public Attached _attached
    cdef public Ledger _ledger
    cdef public Place _place


@cython.locals(total=cython.longlong)
cpdef long long total_bytes(arrays) except -1


@cython.locals(info=tuple)
cpdef _to_wire(Lease lease)
