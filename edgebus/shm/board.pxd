# Types for the compiled form of board.py.
cdef class Board:
    cdef object __weakref__
    cdef public object _segment, _words

    cpdef give_back(self, number)
    cpdef bint tells(self, number) except -1
