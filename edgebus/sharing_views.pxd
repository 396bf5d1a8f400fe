# Types for the compiled form of sharing_views.py.
cimport cython

from edgebus.attached cimport Attached, NearLane
from edgebus.sharing_puts cimport SharingPuts
from edgebus.shm.board cimport Board
from edgebus.shm.ledger cimport Ledger
from edgebus.shm.mapper cimport Mapper, Place


cdef class SharingViews(SharingPuts):
    cdef public object near, came_round, _returned
    cdef public dict _ledgers
    cdef public Mapper _mapper
    cdef public double _returned_share
    cdef public long _num_untold
    cdef public Attached _lender
    cdef public Ledger _its_ledger

    cpdef resolve(self, Attached attached, header)
    @cython.locals(board=Board, ledger=Ledger, near=NearLane, place=Place, left=Place)
    cpdef list views(self, Attached attached, list places)
    @cython.locals(attached=Attached, ledger=Ledger)
    cpdef take_back(self, double now)
    cpdef bint _is_much(self) except -1
    @cython.locals(board=Board, near=NearLane)
    cpdef _give_back(self, Attached attached, Ledger ledger, Place place)
    cpdef _view(self, Attached attached, Place place, Ledger ledger)
    cpdef Ledger _ledger(self, Attached attached)


cdef class _Release:
    cdef public SharingViews _sharing
    cdef public Attached _attached
    cdef public Ledger _ledger
    cdef public Place _place
