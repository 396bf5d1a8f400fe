# Types for the compiled form of sharing_puts.py.
cimport cython

from edgebus.attached cimport Attached
from edgebus.sharing_numbers cimport SharingNumbers
from edgebus.shm.numbers cimport Numbers
from edgebus.shm.pool cimport Lease


cdef class SharingPuts(SharingNumbers):
    cdef public object _dropped, _dtype, _shape
    cdef public dict _loans
    cdef public set _unsent_loans, _sent_loans
    cdef public long long _from_bytes
    cdef public tuple _specs

    @cython.locals(lent=list, put=list, copied=list, blocks=list, pos=cython.Py_ssize_t)
    cpdef put(self, Attached attached, arrays)
    cpdef tuple _described(self, arrays)
    cpdef copied_bytes(self, blocks)
    @cython.locals(names=Numbers)
    cpdef done(self, Attached attached, leases)
    cpdef _done_with_dropped(self)


@cython.locals(info=tuple)
cpdef _to_wire(Lease lease)
