# Types for the compiled form of numbers.py.
cimport cython


cdef class Numbers:
    cdef public long long _next, _detour
    cdef public dict _leases, _sent
    cdef public set _numbered, _done

    cpdef number(self, lease_id)
    cpdef long long upcoming(self) except -1
    cpdef went_round(self)
    cpdef bint in_order(self) except -1
    cpdef bint was_sent(self, lease_id) except -1
    cpdef list done(self, lease_ids)
    cpdef list settle(self, long long upto, held)
    @cython.locals(unused=list, total=long)
    cpdef list read(self, board, bint thorough=*)
    @cython.locals(places=cython.longlong, at=cython.longlong, unused=list)
    cpdef list _on_board(self, board, numbers, long left)
    @cython.locals(count=long)
    cpdef list _returned(self, list numbers)
