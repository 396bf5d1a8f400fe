# cython: language_level=3
# cython: freethreading_compatible=False
"""What the kernel says of a connection of libzmq's and of this process: as tcp.py does, but no signal handler comes in
between and no other thread sees the descriptors."""


def came(int fd):
    cdef eb_found found
    if eb_came(fd, &found) < 0:
        return None
    return (
        found.inode, found.received - found.queued, found.local_port, found.remote_port,
        f"{found.remote.decode()}:{found.remote_port}",
    )


def pages():
    return eb_pages()


def end(int fd, unsigned long long inode):
    return eb_end(fd, inode)
