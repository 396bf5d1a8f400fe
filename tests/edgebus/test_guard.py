"""The guard of a node's connections where the kernel refuses it something, or descriptors become another's."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import struct
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from edgebus import tcp
from edgebus.tcp import Kernel, open_guard
from tests.edgebus.child_flooded import MIB
from tests.edgebus.test_sharing import eventually
from tests.edgebus.test_unread import SO_ATTACH_FILTER, Received, asks, fresh_pages, guarded, statm_fds

pytestmark = [
    pytest.mark.net,
    pytest.mark.skipif(open_guard(1, 1) is None, reason="nothing counts the bytes of connections here, or not in C"),
]
NUMBERS = {  # of system calls: setsockopt, fcntl, clone, clone3
    "x86_64": (54, 72, 56, 435),
    "aarch64": (208, 25, 220, 435),
}
ENOTSUPP = 524  # of the kernel's own: it could not translate the filter, and has nothing that would interpret it
F_DUPFD_CLOEXEC = 1030
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP = 38, 22
LOAD, IF_EQUAL, RETURN = 0x20, 0x15, 0x06
REFUSED, ALLOWED = 0x50000, 0x7FFF0000  # SECCOMP_RET_ERRNO, SECCOMP_RET_ALLOW
FLOCK = struct.Struct("@hhqqi0q")


def on_a_thread(work):
    """Run something on a thread of its own; what it raises is raised here."""
    failed = []

    def run():
        try:
            work()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    if failed:
        raise failed[0]


def guard_is_gone():
    """Whether no thread is left of the guards there were."""
    names = []
    for task in os.scandir("/proc/self/task"):
        with suppress(OSError):
            names.append((Path(task.path) / "comm").read_text().strip())
    return "edgebus-guard" not in names


def refuse(call, error, argument=None, value=0):
    """From now on this thread, and those it starts, cannot make a system call (with this value of an argument)."""
    eventually(guard_is_gone, 10, "the next one is started by this thread")
    number = NUMBERS[platform.machine()][("setsockopt", "fcntl", "clone", "clone3").index(call)]
    look = [] if argument is None else [(LOAD, 0, 0, 16 + 8 * argument), (IF_EQUAL, 0, 1, value)]
    steps = [(LOAD, 0, 0, 0), (IF_EQUAL, 0, 1 + len(look), number), *look, (RETURN, 0, 0, REFUSED | error)]
    steps += [(RETURN, 0, 0, ALLOWED)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(steps), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(PR_SET_SECCOMP, 2, program, 0, 0):
        pytest.skip("this kernel refuses nothing on demand")


needs_seccomp = pytest.mark.skipif(platform.machine() not in NUMBERS, reason="numbers of system calls")


@needs_seccomp
@pytest.mark.parametrize(
    "error", [errno.ENOPROTOOPT, errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, ENOTSUPP]
)
def test_guard_ends_whom_it_cannot_hold_back_whatever_the_kernel_says(error):
    def work():
        with guarded() as (guard, stack):
            one = Received(stack)
            refuse("setsockopt", error, 2, SO_ATTACH_FILTER)
            one.known(guard)
            one.sending.settimeout(20)
            with pytest.raises(ConnectionError):
                one.send(500)
            eventually(lambda: guard.num_ever_paused >= 1, 5, "it is counted")

    on_a_thread(work)


@needs_seccomp
def test_guard_holds_back_and_lets_go_where_no_descriptor_can_be_doubled():
    def work():
        with guarded() as (guard, stack):
            one = Received(stack)
            refuse("fcntl", errno.ENOMEM, 1, F_DUPFD_CLOEXEC)
            one.known(guard)
            assert not one.send(500)
            assert guard.num_ever_paused == 1
            before = one.num_bytes
            guard.looked(True, 0)
            eventually(lambda: one.num_bytes > before, 5, "what was dropped comes again")

    on_a_thread(work)


@needs_seccomp
def test_guard_says_that_it_looks_after_nobody_where_no_thread_can_be_started():
    def work():
        with ExitStack() as stack:
            ones = [Received(stack) for _ in range(2)]
            guard = open_guard(32 * MIB, 8 * MIB)
            stack.callback(guard.close)
            for call in ("clone", "clone3"):
                refuse(call, errno.EAGAIN)
            for one in ones:
                assert not guard.know(one.sock.fileno(), one.found.inode, True, one.tcp_port, "")
            guard.looked(True, 0)

    on_a_thread(work)
    with guarded() as (guard, stack):  # the next one can, on a thread that may
        one = Received(stack)
        one.known(guard)
        assert not one.send(500)


def test_descriptors_of_a_guard_are_not_handed_to_other_programs():
    with guarded() as (guard, stack):
        Received(stack).known(guard)
        kept = list(statm_fds())
        assert kept
        assert not any(os.get_inheritable(fd) for fd in [guard.fileno(), *kept])


def is_locked(fd):
    """Whether this process has a lock on a file: a lock that is an open file's would have to wait for it."""
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, FLOCK.pack(fcntl.F_WRLCK, 0, 0, 0, 0))
    return FLOCK.unpack(answer)[0] != fcntl.F_UNLCK


@contextmanager
def locked_file(path):
    """A file that this process has locked, as data bases do; another descriptor of it to look by."""
    with open(path, "wb") as file, open(path, "wb") as other:
        fcntl.lockf(file, fcntl.LOCK_EX)
        assert is_locked(other.fileno())
        yield file, other.fileno()


def test_file_that_has_the_descriptor_of_who_was_held_back_stays_locked(tmp_path):
    """Whoever closes any descriptor of a file gives up the locks that this process has on it."""
    with guarded() as (guard, stack):
        one = Received(stack)
        one.known(guard)
        assert not one.send(500)
        one._end()
        with locked_file(tmp_path / "file") as (file, other):
            os.dup2(file.fileno(), one.sock.fileno())
            guard.looked(True, 0)
            assert is_locked(other)


@pytest.mark.parametrize(
    "ask",
    [tcp.came, Kernel().came, lambda fd: tcp.end(fd, 1), lambda fd: Kernel().end(fd, 1)],
    ids=["came", "came in C", "end", "end in C"],
)
def test_file_that_has_the_descriptor_of_a_connection_stays_locked(ask, tmp_path):
    with locked_file(tmp_path / "file") as (file, other):
        assert not ask(file.fileno())
        assert is_locked(other)


@pytest.mark.parametrize("fd", [-1, 2**31 - 1])
def test_guard_does_not_look_after_what_is_no_descriptor(fd):
    with guarded() as (guard, _):
        assert not guard.know(fd, 1, True, 1, "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
def test_forked_child_cannot_let_its_parents_peers_go():
    with guarded() as (guard, stack):
        one = Received(stack)
        one.known(guard)
        child = os.fork()
        if not child:
            with suppress(BaseException):
                os._exit(1 if guard.know(one.sock.fileno(), one.found.inode, True, one.tcp_port, "") else 0)
            os._exit(2)
        assert os.waitpid(child, 0)[1] == 0


def test_what_was_read_long_ago_does_not_count_when_its_connection_is_gone():
    with guarded(8, 32) as (guard, stack):
        gone = [Received(stack) for _ in range(2)]
        for one in gone:
            one.known(guard)
        assert gone[0].send(30)
        assert not gone[1].send(500), "by now it has looked at both"
        guard.looked(True, 0)
        assert guard.num_paused == 0
        for one in gone:
            one._end()
            one.sock.close()
        asks(guard, 0.0)
        with fresh_pages(40), ExitStack() as more:
            assert asks(guard, 20.0)
            for _ in range(10):
                more.enter_context(fresh_pages(5))
                assert guard.num_paused == 0, "who listens is not held back"
                time.sleep(0.02)


def test_who_sends_into_memory_that_the_process_has_is_held_back_too():
    """What was freed before, or another part of it is swapped out meanwhile: nothing grows."""
    with guarded() as (guard, stack):
        one = Received(stack, pages=bytearray(b"x") * (16 * MIB))
        one.known(guard)
        until = time.monotonic() + 20.0
        while one.send(1) and time.monotonic() < until:
            time.sleep(0.01)
        assert guard.num_ever_paused == 1


@pytest.mark.parametrize("power", [60, 62, 70])
def test_limits_that_are_none_hold_nobody_back(power):
    guard = open_guard(2**power, 2**power)
    with ExitStack() as stack:
        stack.callback(guard.close)
        one = Received(stack)
        one.known(guard)
        assert one.send(60)
        assert asks(guard, 20.0)
        assert one.send(60)
        assert guard.num_ever_paused == 0
