# Types for the compiled form of wire.py.
cimport cython


@cython.locals(items=cython.longlong, strides=cython.longlong, dim=cython.longlong, need_bytes=cython.longlong,
               most=cython.longlong)
cpdef spec_fault(spec, long long frame_bytes)
