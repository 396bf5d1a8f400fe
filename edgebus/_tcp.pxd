"""What is asked of the kernel, in C: for _tcp and _guard."""

cdef extern from *:
    """
    #include <errno.h>
    #include <fcntl.h>
    #include <stdio.h>
    #include <string.h>
    #include <unistd.h>
    #include <sys/ioctl.h>
    #include <sys/socket.h>
    #include <sys/stat.h>
    #include <arpa/inet.h>
    #include <netinet/in.h>
    #include <netinet/tcp.h>

    typedef struct eb_found {
        unsigned long long inode, received;
        int queued, local_port, remote_port;
        char local[INET6_ADDRSTRLEN], remote[INET6_ADDRSTRLEN];
    } eb_found;

    /* The port of an address; its text if there is room for it. */
    static inline int eb_port(const struct sockaddr_storage *where, char *text) {
        if (where->ss_family == AF_INET) {
            const struct sockaddr_in *four = (const struct sockaddr_in *)where;
            if (text != NULL) inet_ntop(AF_INET, &four->sin_addr, text, INET6_ADDRSTRLEN);
            return ntohs(four->sin_port);
        }
        if (where->ss_family == AF_INET6) {
            const struct sockaddr_in6 *six = (const struct sockaddr_in6 *)where;
            if (text != NULL) inet_ntop(AF_INET6, &six->sin6_addr, text, INET6_ADDRSTRLEN);
            return ntohs(six->sin6_port);
        }
        return -1;
    }

    /* Not by a double of the descriptor: whoever has filled the table of descriptors would not be seen. libzmq may close
       it at any time, so what it says is of one connection only if the descriptor was the same one's before and after. */
    static inline int eb_came(int fd, eb_found *found) {
        struct sockaddr_storage local, remote;
        socklen_t local_size = sizeof local, remote_size = sizeof remote;
        unsigned char info[256];
        socklen_t size = sizeof info;
        struct stat before, after;
        if (fstat(fd, &before) < 0 || !S_ISSOCK(before.st_mode)) return -1;
    #ifdef __linux__
        if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, info, &size) < 0 || size < 136) return -1;
        memcpy(&found->received, info + 128, sizeof found->received); /* tcpi_bytes_received, since Linux 4.1 */
    #else
        return -1;
    #endif
        if (ioctl(fd, FIONREAD, &found->queued) < 0) return -1;
        if (getsockname(fd, (struct sockaddr *)&local, &local_size) < 0) return -1;
        if (getpeername(fd, (struct sockaddr *)&remote, &remote_size) < 0) return -1;
        if (fstat(fd, &after) < 0 || after.st_ino != before.st_ino) return -1;
        found->inode = before.st_ino;
        found->local_port = eb_port(&local, found->local);
        found->remote_port = eb_port(&remote, found->remote);
        return found->remote_port < 0 ? -1 : 0;
    }

    static inline int eb_is_of(int fd, unsigned long long inode) {
        struct stat found;
        return fstat(fd, &found) == 0 && S_ISSOCK(found.st_mode) && found.st_ino == inode;
    }

    /* A double of a socket's descriptor, which stays what it is, or the descriptor itself where there can be no other one:
       the table may be full, perhaps by this very peer. -1 if the descriptor is another one's by now. That is looked at
       before as well: if it is a file's, closing the double would give up the locks that this process has on it. */
    static inline int eb_same(int fd, unsigned long long inode) {
        int same;
        if (!eb_is_of(fd, inode)) return -1;
        same = fcntl(fd, F_DUPFD_CLOEXEC, 0);
        if (same < 0) return errno == EBADF ? -1 : fd;
        if (eb_is_of(same, inode)) return same;
        close(same);
        return -1;
    }

    static inline int eb_end(int fd, unsigned long long inode) {
        int same = eb_same(fd, inode), done;
        struct linger at_once = {1, 0};
        if (same < 0) return 0;
        setsockopt(same, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
        done = shutdown(same, SHUT_RDWR) == 0;
        if (same != fd) close(same);
        return done;
    }

    /* Pages that this process has, -1 if that cannot be known. */
    static inline long eb_pages(void) {
        char text[128];
        long pages = -1;
        int file = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
        ssize_t size = file < 0 ? -1 : read(file, text, sizeof text - 1);
        if (file >= 0) close(file);
        if (size <= 0) return -1;
        text[size] = 0;
        return sscanf(text, "%*s %ld", &pages) == 1 ? pages : -1;
    }
    """
    ctypedef struct eb_found:
        unsigned long long inode, received
        int queued, local_port, remote_port
        char remote[46]
    int eb_came(int fd, eb_found* found) noexcept
    bint eb_end(int fd, unsigned long long inode) noexcept
    long eb_pages() noexcept
