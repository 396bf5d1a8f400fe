"""What the guard knows of this process: whose its connections are, what came by each, what memory it has; and how the
kernel is told to drop what comes by one. For _guard alone, which has `eb_lock` meanwhile."""

from edgebus._tcp cimport *

cdef extern from *:
    """
    #include <errno.h>
    #include <fcntl.h>
    #include <stdlib.h>
    #include <string.h>
    #include <netinet/in.h>
    #ifdef __linux__
    #include <linux/filter.h>
    #include <pthread.h>
    #include <signal.h>
    #include <stdio.h>
    #include <time.h>
    #include <sys/eventfd.h>
    #include <sys/prctl.h>

    #define EB_MOST_FDS (1 << 24)
    #define EB_HOLES 1024        /* so many descriptors in a row that are closed are the end of the table */

    /* Whose connections are a node's: that came in by this port (of this address, where it listens at one alone), or
       went there. */
    typedef struct eb_end_of { int is_accepted, port; char address[INET6_ADDRSTRLEN]; } eb_end_of;

    typedef struct eb_node {
        struct eb_node *next;
        long long most, allowed;  /* bytes: of all together, and of each beside that */
        int asking;               /* an eventfd */
        double looked_at;
        double asked_at;          /* 0: not asked, or it has looked */
        int was_seen;             /* its connections have been looked at since: what comes stays unread */
        long long left;           /* unread of connections that are no more, or when it looked last */
        _Atomic long num_paused, num_ever_paused; /* read without the lock */
        eb_end_of *ends;
        int num_ends, next_end;
        int born;                 /* eb_forks then: a forked child must not touch what was its parent's */
    } eb_node;

    /* What a descriptor is, as far as it is known. */
    typedef struct eb_slot {
        unsigned long long inode, base, unread;
        eb_node *node;
        char is_new, is_told, is_paused, listens;
    } eb_slot;

    static pthread_mutex_t eb_lock = PTHREAD_MUTEX_INITIALIZER;
    static pthread_cond_t eb_changed;
    static eb_node *eb_nodes = NULL;
    static eb_slot *eb_slots = NULL;
    static int eb_num_slots = 0, eb_runs = 0, eb_is_set_up = 0, eb_statm = -1, eb_forks = 0, eb_num_guards = 0;
    static dev_t eb_statm_device;
    static ino_t eb_statm_inode;

    /* The descriptor that is kept for /proc, -1 if it is not open, or if the application has closed it and what has that
       number now is its own. */
    static int eb_kept(void) {
        struct stat found;
        if (eb_statm >= 0 && fstat(eb_statm, &found) == 0 && found.st_dev == eb_statm_device && found.st_ino == eb_statm_inode)
            return eb_statm;
        return eb_statm = -1;
    }

    static void eb_close_kept(void) {
        if (eb_kept() >= 0) close(eb_statm);
        eb_statm = -1;
    }

    /* Like eb_pages, with a descriptor that is kept: the table may be full just then. */
    static long eb_pages_kept(void) {
        char text[128];
        long pages = -1;
        ssize_t size;
        if (eb_kept() < 0) {
            struct stat found;
            int file = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
            if (file < 0) return -1;
            if (fstat(file, &found) < 0) { close(file); return -1; }
            eb_statm_device = found.st_dev;
            eb_statm_inode = found.st_ino;
            eb_statm = file;
        }
        size = pread(eb_statm, text, sizeof text - 1, 0);
        if (size <= 0) return -1;
        text[size] = 0;
        return sscanf(text, "%*s %ld", &pages) == 1 ? pages : -1;
    }

    /* Drop what comes by a socket from now on, or take in again what TCP sends once more: 0, or why not; EBADF if the
       descriptor is another one's. */
    static int eb_pause(int fd, unsigned long long inode, int pauses, int listens) {
        struct sock_filter everything = BPF_STMT(BPF_RET | BPF_K, 0);
        /* A filter sees a segment from TCP's header on. One without content passes: what we send is acknowledged. */
        struct sock_filter content[] = {
            BPF_STMT(BPF_LD | BPF_W | BPF_LEN, 0),
            BPF_STMT(BPF_MISC | BPF_TAX, 0),
            BPF_STMT(BPF_LD | BPF_B | BPF_ABS, 12),
            BPF_STMT(BPF_ALU | BPF_AND | BPF_K, 0xf0),
            BPF_STMT(BPF_ALU | BPF_RSH | BPF_K, 2), /* of the header, four bits that count words */
            BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_X, 0, 0, 1),
            BPF_STMT(BPF_RET | BPF_K, 0xffffffff),
            BPF_STMT(BPF_RET | BPF_K, 0),
        };
        struct sock_fprog program = {sizeof content / sizeof *content, content};
        int same = eb_same(fd, inode), failed, none = 0;
        if (same < 0) return EBADF;
        if (listens) { /* a connection begins with a segment without content */
            program.len = 1;
            program.filter = &everything;
        }
        failed = pauses ? setsockopt(same, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program)
                        : setsockopt(same, SOL_SOCKET, SO_DETACH_FILTER, &none, sizeof none);
        failed = failed < 0 ? errno : 0;
        if (same != fd) close(same);
        return failed;
    }

    static int eb_is_end(const eb_node *node, const eb_found *found, int listens) {
        for (int i = 0; i < node->num_ends; i++) {
            const eb_end_of *end = &node->ends[i];
            if (end->is_accepted ? end->port == found->local_port && (!*end->address || !strcmp(end->address, found->local))
                                 : !listens && end->port == found->remote_port && !strcmp(end->address, found->remote))
                return 1;
        }
        return 0;
    }

    static int eb_make_room(int fd) {
        int count;
        eb_slot *more;
        if (fd < 0 || fd > EB_MOST_FDS) return -1;
        if (fd < eb_num_slots) return 0;
        count = fd + 256;
        more = realloc(eb_slots, count * sizeof *more);
        if (more == NULL) return -1;
        memset(more + eb_num_slots, 0, (count - eb_num_slots) * sizeof *more);
        eb_slots = more;
        eb_num_slots = count;
        return 0;
    }

    /* The descriptor is another one's by now, or nobody's. */
    static void eb_forget(eb_slot *slot) {
        eb_node *node = slot->node;
        if (node != NULL && node->asked_at != 0) node->left += slot->unread;
        if (node != NULL && slot->is_paused) node->num_paused--;
        memset(slot, 0, sizeof *slot);
    }

    /* A listening socket has no peer: its port, its inode. */
    static int eb_listens(int fd, eb_found *found) {
        struct sockaddr_storage local;
        socklen_t size = sizeof local, int_size = sizeof(int);
        struct stat what;
        int listens = 0;
        if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &int_size) < 0 || !listens) return 0;
        if (fstat(fd, &what) < 0 || !S_ISSOCK(what.st_mode)) return 0;
        if (getsockname(fd, (struct sockaddr *)&local, &size) < 0) return 0;
        memset(found, 0, sizeof *found);
        found->inode = what.st_ino;
        found->local_port = eb_port(&local, found->local);
        return found->local_port >= 0;
    }

    /* Look at a descriptor: False if there is none. */
    static int eb_look_at(int fd) {
        eb_found found;
        eb_node *node = NULL;
        eb_slot *slot = fd < eb_num_slots ? &eb_slots[fd] : NULL;
        int listens = 0;
        if (eb_came(fd, &found) < 0) {
            listens = eb_listens(fd, &found);
            if (!listens) {
                if (slot != NULL && slot->inode) eb_forget(slot);
                return fcntl(fd, F_GETFD) >= 0;
            }
        }
        if (slot != NULL && slot->inode && slot->inode != found.inode) eb_forget(slot);
        if (slot != NULL && slot->inode) node = slot->node;
        else { /* nobody was told of it yet: a stuck node's that has its address, if there is one */
            for (node = eb_nodes; node != NULL; node = node->next)
                if (node->asked_at != 0 && eb_is_end(node, &found, listens)) break;
            if (node == NULL || eb_make_room(fd) < 0) return 1;
            slot = &eb_slots[fd];
            slot->inode = found.inode;
            slot->node = node;
            slot->is_new = 1;
            slot->listens = (char)listens;
            if (!listens) eb_pause(fd, slot->inode, 0, 0); /* it may have the filter of who listened */
        }
        if (node->asked_at == 0 || listens) return 1;
        if (!node->was_seen) { /* the first look: how much of it was read nobody knows */
            slot->base = found.received - found.queued;
            slot->is_new = 0;
        }
        slot->unread = found.received - found.queued - slot->base;
        return 1;
    }

    static void eb_look_at_all(void) {
        int holes = 0;
        for (int fd = 0; fd < eb_num_slots || holes < EB_HOLES; fd++) holes = eb_look_at(fd) ? 0 : holes + 1;
    }
    #endif
    """
