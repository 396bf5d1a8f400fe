# Types for the compiled form of sharing_numbers.py.
cimport cython

from edgebus.attached cimport Attached, NearLane
from edgebus.sharing_pool cimport SharingPool
from edgebus.shm.numbers cimport Numbers


cdef class SharingNumbers(SharingPool):
    cdef public dict _numbers
    cdef public Attached _named
    cdef public Numbers _its_names

    @cython.locals(names=Numbers, near=bint)
    cpdef tuple number(self, Attached attached, header)
    @cython.locals(names=Numbers)
    cpdef bint in_order(self, Attached attached) except -1
    @cython.locals(names=Numbers, first=cython.longlong)
    cpdef long long number_new(self, Attached attached, blocks) except -1
    @cython.locals(names=Numbers)
    cpdef went_round(self, Attached attached)
    @cython.locals(near=NearLane, names=Numbers)
    cpdef bint collect(self, Attached attached, bint thorough=*) except -1
    cpdef Numbers _names(self, Attached attached)
