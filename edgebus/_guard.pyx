# cython: language_level=3
# cython: freethreading_compatible=False
"""A thread that keeps what comes by the connections of a node within bounds while nobody reads them.

What libzmq receives is read by Python, and bounded by it (unended.py). A thread of Python may not come to that: a handler
computes, or another one keeps the interpreter's lock. So this thread, which needs neither, looks at the memory of the
process. Has it grown, nodes are asked to look. Who does not within EB_ANSWER_S is stuck: what comes by its connections
from then on is what nobody has read. Where that is too much the kernel drops what comes (a filter on the socket), and TCP
sends it again, until the node has looked. Nothing is lost and nobody is ended.

Connections are found among the descriptors of the process, since libzmq may have accepted or dialled them after the node
was stuck: by the port they came in by, or the address that was dialled.
"""
cimport cython
from libc.string cimport memcpy, memset

cdef extern from *:
    """
    #ifdef __linux__
    #define EB_TICK_S 0.1     /* the memory is looked at so often; */
    #define EB_SOON_S 0.01    /* so often while a node has not answered. */
    #define EB_ANSWER_S 0.03
    #define EB_UNHEARD_S 1.5  /* a node that has connections looks every second: who has not is asked, memory or not, */
    #define EB_ANYWAY_S 1.0   /* and so often at least it is looked at who is stuck. */
    #define EB_WARY_S 1.0     /* so long after a question, or after memory has grown, it is looked at often */
    #define EB_GROWN (16 << 20)  /* bytes that make us ask; a quarter of it, look again at who is stuck */
    #define EB_NEW_BYTES 16384   /* of a handshake: what is allowed to who comes when there is too much already */
    #define EB_CROWD 8           /* so many may have all that is allowed to each */
    #define EB_ENDS 1024

    static double eb_now(void) {
        struct timespec at;
        clock_gettime(CLOCK_MONOTONIC, &at);
        return at.tv_sec + at.tv_nsec / 1e9;
    }

    static long eb_base = -1; /* pages, when the thread was started: it may come to run much later */

    /* Unread bytes of those connections of a node that have no more of them than that. */
    static long long eb_unread_up_to(const eb_node *node, long long level) {
        long long sum = 0;
        for (int fd = 0; fd < eb_num_slots; fd++)
            if (eb_slots[fd].node == node && (long long)eb_slots[fd].unread <= level) sum += eb_slots[fd].unread;
        return sum;
    }

    /* So much each may have where many have a little less than what is allowed to each: those that have most are held back,
       until the others have no more than three times what is left of all. So it never is all, and who has little goes on. */
    static long long eb_level(const eb_node *node, long long total) {
        long long all = node->most + EB_CROWD * node->allowed, room = 3 * (all - total);
        long long low = EB_NEW_BYTES, high = node->allowed;
        if (total <= all / 4 * 3 || high <= low || eb_unread_up_to(node, high) <= room) return node->allowed;
        while (high - low > 4096) {
            long long middle = low + (high - low) / 2;
            if (eb_unread_up_to(node, middle) <= room) low = middle;
            else high = middle;
        }
        return low;
    }

    /* Hold back who has sent too much, if that is the case. */
    static void eb_judge(eb_node *node) {
        long long over = node->left, total = node->left, level;
        for (int fd = 0; fd < eb_num_slots; fd++) {
            long long unread = (long long)eb_slots[fd].unread;
            if (eb_slots[fd].node != node) continue;
            total += unread;
            if (unread > node->allowed) over += unread - node->allowed;
        }
        level = eb_level(node, total);
        if (over <= node->most && level >= node->allowed) return;
        for (int fd = 0; fd < eb_num_slots; fd++) {
            eb_slot *slot = &eb_slots[fd];
            long long allowed = slot->is_new ? EB_NEW_BYTES : level;
            int failed;
            if (slot->node != node || slot->is_paused || (!slot->listens && (long long)slot->unread <= allowed)) continue;
            failed = eb_pause(fd, slot->inode, 1, slot->listens);
            if (!failed) {
                slot->is_paused = 1;
                node->num_paused++;
            } else { /* no filters here, for whatever reason: it is ended, if it is known to be the node's */
                if (failed == EBADF || slot->listens || !slot->is_told || !eb_end(fd, slot->inode)) continue;
            }
            node->num_ever_paused += !slot->listens;
        }
    }

    /* It is not stuck. Nobody is kept from coming any more, nor, with all of them, from sending. */
    static void eb_resume(eb_node *node, int all, int forgets) {
        for (int fd = 0; fd < eb_num_slots; fd++) {
            eb_slot *slot = &eb_slots[fd];
            if (slot->node != node) continue;
            slot->unread = 0; /* as far as anybody knows: where it is not, memory has grown by it */
            if (slot->is_paused && (all || slot->listens)) {
                eb_pause(fd, slot->inode, 0, 0);
                slot->is_paused = 0;
                node->num_paused--;
            }
            if (forgets) memset(slot, 0, sizeof *slot);
        }
    }

    /* What the memory has grown by is taken to be unread, but not for more than is allowed: it may be something else. */
    static void eb_ask(eb_node *node, double now, long long grown) {
        unsigned long long one = 1;
        node->asked_at = now;
        if (grown > node->most) grown = node->most;
        if (grown > node->left) node->left = grown;
        if (write(node->asking, &one, sizeof one) < 0) {
            /* it has been asked already */
        }
    }

    static void *eb_watch(void *unused) {
        long base = eb_base, looked = -1;
        double tick = EB_TICK_S, not_before = 0, ask_at = 0, wary_until = 0, anyway_at = 0;
        long grown = EB_GROWN / sysconf(_SC_PAGESIZE);
        (void)unused;
        prctl(PR_SET_NAME, "edgebus-guard");
        pthread_mutex_lock(&eb_lock);
        while (eb_nodes != NULL) {
            struct timespec until;
            eb_node *node;
            int asked = 0, stuck = 0, fresh = 0, has_grown;
            double now = eb_now() + tick;
            long pages;
            until.tv_sec = (time_t)now;
            until.tv_nsec = (long)((now - (double)until.tv_sec) * 1e9);
            pthread_cond_timedwait(&eb_changed, &eb_lock, &until);
            if (eb_nodes == NULL) break;
            now = eb_now();
            pages = eb_pages_kept();
            for (node = eb_nodes; node != NULL; node = node->next) asked |= node->asked_at != 0;
            if (pages >= 0 && (base < 0 || (pages < base && !asked))) base = pages;
            if ((pages < 0 || pages >= base + grown) && now >= ask_at) { /* where nobody knows it may have grown */
                for (node = eb_nodes; node != NULL; node = node->next) {
                    if (node->asked_at != 0) continue;
                    eb_ask(node, now, pages < 0 ? EB_GROWN : (pages - base) * sysconf(_SC_PAGESIZE));
                    asked = fresh = 1;
                }
                ask_at = now + EB_TICK_S;
                if (pages >= 0) base = pages;
            }
            for (node = eb_nodes; node != NULL; node = node->next) { /* memory that was freed, or is swapped out, may be filled */
                if (node->asked_at != 0 || now < node->looked_at + EB_UNHEARD_S) continue;
                eb_ask(node, now, 0);
                asked = 1;
                anyway_at = 0; /* if it does not answer; mostly it has no connection just now */
            }
            for (node = eb_nodes; node != NULL; node = node->next)
                stuck |= node->asked_at != 0 && now >= node->asked_at + EB_ANSWER_S;
            has_grown = pages < 0 || pages >= looked + grown / 4;
            if (fresh || (pages >= 0 && has_grown)) wary_until = now + EB_WARY_S;
            if ((fresh || (stuck && (has_grown || now >= anyway_at))) && now >= not_before) {
                eb_look_at_all();
                for (node = eb_nodes; node != NULL; node = node->next) {
                    if (node->asked_at == 0) continue;
                    node->was_seen = 1;
                    if (now >= node->asked_at + EB_ANSWER_S) eb_judge(node);
                }
                looked = pages;
                anyway_at = now + EB_ANYWAY_S;
                not_before = eb_now();
                not_before += 10 * (not_before - now); /* a tenth of the time at most */
            }
            tick = asked && now < wary_until ? EB_SOON_S : EB_TICK_S;
        }
        eb_runs = 0;
        pthread_mutex_unlock(&eb_lock);
        return NULL;
    }

    /* A forked child has neither the thread nor the nodes, which it must not touch. */
    static void eb_forked(void) {
        pthread_mutex_t unlocked = PTHREAD_MUTEX_INITIALIZER;
        eb_lock = unlocked;
        eb_nodes = NULL;
        eb_num_slots = eb_runs = eb_is_set_up = 0; /* what the slots took is left to it */
        eb_slots = NULL;
        eb_num_guards = 0;
        eb_forks++;
        eb_close_kept();
    }

    static int eb_start(void) {
        pthread_condattr_t clock;
        pthread_t thread;
        sigset_t all, before;
        int failed;
        if (eb_runs) return 0;
        if (!eb_is_set_up) {
            pthread_condattr_init(&clock);
            pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
            pthread_cond_init(&eb_changed, &clock);
            pthread_condattr_destroy(&clock);
            eb_is_set_up = 1;
        }
        eb_base = eb_pages_kept();
        sigfillset(&all);  /* signals are the application's */
        pthread_sigmask(SIG_SETMASK, &all, &before);
        failed = pthread_create(&thread, NULL, eb_watch, NULL);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        if (failed) return -1;
        pthread_detach(thread);
        eb_runs = 1;
        return 0;
    }

    static eb_node *eb_open_node(long long most, long long allowed) {
        static int is_told = 0; /* of forks */
        eb_node *node = calloc(1, sizeof *node);
        if (node == NULL) return NULL;
        node->most = most;
        node->allowed = allowed;
        node->asking = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
        if (node->asking < 0) { free(node); return NULL; }
        pthread_mutex_lock(&eb_lock);
        if (!is_told && pthread_atfork(NULL, NULL, eb_forked) == 0) is_told = 1;
        node->born = eb_forks;
        eb_num_guards++;
        eb_pages_kept(); /* opens it: later the table of descriptors may be full */
        pthread_mutex_unlock(&eb_lock);
        return node;
    }

    /* A node is not looked after (any more), and keeps nobody from sending. */
    static void eb_unlink(eb_node *node) {
        eb_node **at;
        for (at = &eb_nodes; *at != NULL && *at != node; at = &(*at)->next) {}
        if (*at == node) *at = node->next;
        node->asked_at = 0;
        node->was_seen = 0;
        eb_resume(node, 1, 1);
        if (eb_nodes == NULL && eb_runs) pthread_cond_signal(&eb_changed); /* the thread ends */
    }

    static void eb_drop(eb_node *node) {
        pthread_mutex_lock(&eb_lock);
        eb_unlink(node);
        pthread_mutex_unlock(&eb_lock);
    }

    /* This is a node's connection, whosever it was taken for. */
    static void eb_own(eb_node *node, int fd, unsigned long long inode) {
        eb_slot *slot = &eb_slots[fd];
        if (slot->inode != inode || slot->node != node) {
            eb_pause(fd, inode, 0, 0); /* the other one's, or of who listened */
            if (slot->inode == inode) slot->unread = 0; /* not the other one's */
            eb_forget(slot);
        }
        slot->inode = inode;
        slot->node = node;
        slot->is_told = 1;
    }

    /* A connection of a node, which is looked after from its first one on; not at all any more where that fails. */
    static int eb_known(eb_node *node, int fd, unsigned long long inode, eb_end_of *end) {
        struct sockaddr_storage local;
        socklen_t size = sizeof local;
        char text[INET6_ADDRSTRLEN] = "";
        int failed = 0, i;
        eb_node *each;
        if (end->is_accepted && *end->address) { /* written otherwise, it would be nobody's */
            if (getsockname(fd, (struct sockaddr *)&local, &size) == 0) eb_port(&local, text);
            if (strcmp(text, end->address)) memset(end->address, 0, sizeof end->address);
        }
        pthread_mutex_lock(&eb_lock);
        if (node->born != eb_forks) { /* its filters are the parent's */
            pthread_mutex_unlock(&eb_lock);
            return -1;
        }
        for (i = 0; i < node->num_ends; i++) if (!memcmp(&node->ends[i], end, sizeof *end)) break;
        if (i == node->num_ends && i < EB_ENDS) {
            eb_end_of *more = realloc(node->ends, (node->num_ends + 1) * sizeof *more);
            if (more == NULL) failed = -1;
            else { node->ends = more; more[node->num_ends++] = *end; }
        } else if (i == EB_ENDS) { /* the oldest goes */
            node->ends[node->next_end] = *end;
            node->next_end = (node->next_end + 1) % EB_ENDS;
        }
        if (eb_make_room(fd) < 0) failed = -1;
        else eb_own(node, fd, inode);
        for (each = eb_nodes; each != NULL && each != node; each = each->next) {}
        if (each == NULL) {
            node->looked_at = eb_now();
            node->next = eb_nodes;
            eb_nodes = node;
        }
        if (eb_start() < 0) failed = -1;
        if (failed) eb_unlink(node);
        pthread_mutex_unlock(&eb_lock);
        return failed;
    }

    /* A socket was closed: what has its address from now on is another one's. */
    static void eb_gone(eb_node *node, int is_accepted, int port, const char *address) {
        int kept = 0;
        pthread_mutex_lock(&eb_lock);
        for (int i = 0; i < node->num_ends; i++) {
            eb_end_of *end = &node->ends[i];
            if (end->is_accepted == is_accepted && end->port == port && (is_accepted || !strcmp(end->address, address)))
                continue;
            if (kept != i) node->ends[kept] = *end;
            kept++;
        }
        node->num_ends = kept;
        pthread_mutex_unlock(&eb_lock);
    }

    /* It has looked, and so it is not stuck; so many bytes are unread (-1: as before). */
    static void eb_looked(eb_node *node, int resumes, long long left) {
        pthread_mutex_lock(&eb_lock);
        node->looked_at = eb_now();
        node->asked_at = 0;
        node->was_seen = 0;
        if (left >= 0) node->left = left;
        eb_resume(node, resumes, 0);
        pthread_mutex_unlock(&eb_lock);
    }

    static void eb_close_node(eb_node *node) {
        pthread_mutex_lock(&eb_lock);
        eb_unlink(node);
        if (node->born == eb_forks && --eb_num_guards == 0) eb_close_kept();
        pthread_mutex_unlock(&eb_lock);
        close(node->asking);
        free(node->ends);
        free(node);
    }
    #else
    typedef struct eb_end_of { int is_accepted, port; char address[INET6_ADDRSTRLEN]; } eb_end_of;
    typedef struct eb_node { int asking; long num_paused, num_ever_paused; } eb_node;
    static eb_node *eb_open_node(long long most, long long allowed) { return NULL; }
    static int eb_known(eb_node *node, int fd, unsigned long long inode, eb_end_of *end) { return -1; }
    static void eb_drop(eb_node *node) {}
    static void eb_gone(eb_node *node, int is_accepted, int port, const char *address) {}
    static void eb_looked(eb_node *node, int resumes, long long left) {}
    static void eb_close_node(eb_node *node) {}
    #endif
    """
    ctypedef struct eb_end_of:
        int is_accepted, port
        char address[46]
    ctypedef struct eb_node:
        int asking
        long num_paused, num_ever_paused
    eb_node* eb_open_node(long long most, long long allowed) noexcept
    bint eb_known(eb_node* node, int fd, unsigned long long inode, eb_end_of* end) noexcept
    void eb_drop(eb_node* node) noexcept
    void eb_gone(eb_node* node, bint is_accepted, int port, const char* address) noexcept
    void eb_looked(eb_node* node, bint resumes, long long left) noexcept
    void eb_close_node(eb_node* node) noexcept

NO_LIMIT = 1 << 56  # the sum of a few does not overflow


@cython.final
cdef class Guard:
    """Bounds what comes by a node's connections while it does not look at them; see tcp.Guard.

    Args:
        most_bytes: unread ones of all connections together,
        allowed_bytes: not counting so many of each.

    Raises:
        OSError: not here.
    """

    cdef eb_node* node

    def __cinit__(self, most_bytes, allowed_bytes):
        self.node = eb_open_node(min(most_bytes, NO_LIMIT), min(allowed_bytes, NO_LIMIT))
        if self.node == NULL:
            raise OSError("no thread can look after connections here")

    def __dealloc__(self):
        self.close()

    def fileno(self):
        return -1 if self.node == NULL else self.node.asking

    def know(self, int fd, unsigned long long inode, bint is_accepted, int tcp_port, str address):
        cdef eb_end_of end
        cdef bytes text = address.encode()
        if self.node == NULL:
            return False
        if len(text) >= <Py_ssize_t> sizeof(end.address):
            eb_drop(self.node)
            return False
        memset(&end, 0, sizeof(end))
        end.is_accepted, end.port = is_accepted, tcp_port
        memcpy(end.address, <char*> text, len(text))
        return not eb_known(self.node, fd, inode, &end)

    def forget(self, bint is_accepted, int tcp_port, str address):
        cdef bytes text = address.encode()
        if self.node != NULL:
            eb_gone(self.node, is_accepted, tcp_port, text)

    def looked(self, bint resumes, long long left_bytes):
        if self.node != NULL:
            eb_looked(self.node, resumes, left_bytes)

    @property
    def num_paused(self):
        return 0 if self.node == NULL else self.node.num_paused

    @property
    def num_ever_paused(self):
        return 0 if self.node == NULL else self.node.num_ever_paused

    cpdef close(self):
        cdef eb_node* node = self.node
        self.node = NULL
        if node != NULL:
            eb_close_node(node)
