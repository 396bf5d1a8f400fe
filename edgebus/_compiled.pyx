# cython: language_level=3
# cython: freethreading_compatible=False
"""The shared object with all modules of the bus that are compiled; see forms.py, which finds them in it."""
cdef extern from "dlfcn.h" nogil:
    void* dlopen(const char* name, int flags)
    void* dlsym(void* handle, const char* name)
    int dlclose(void* handle)
    enum: RTLD_LAZY


def lacks(bytes path, names):
    """Those of these modules that the object at this path, which is loaded, does not have."""
    cdef void* handle = dlopen(path, RTLD_LAZY)
    cdef bytes symbol
    missing = []
    if handle == NULL:
        return list(names)
    for name in names:
        symbol = b"PyInit_" + name.rpartition(".")[2].encode()
        if dlsym(handle, symbol) == NULL:
            missing.append(name)
    dlclose(handle)
    return missing
