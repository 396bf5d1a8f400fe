"""The allow-list while its file changes: who may connect, who is cut and when, and what is told."""

from __future__ import annotations

import errno
import os
import threading
import time

import pytest

import edgebus.allowedit
from edgebus.allowlist import LOOK_EVERY_S
from edgebus.errors import ConfigError, KeyFileError
from edgebus.grants import MAX_LIST_BYTES, Grant
from edgebus.keys import allow_keys, deny_keys

KEY = "0123456789abcdefghijklmnopqrstuvwxyzABCD"
OTHER = "ABCDabcdefghijklmnopqrstuvwxyz0123456789"
THIRD = "." * 40


class World:
    """A list file, an AllowList with a wall clock of its own, and looks once a second."""

    def __init__(self, folder, text=f"{KEY} a\n{OTHER} b\n"):
        self.file = folder / "allowed_keys"
        self.ahead_s = 3600.0  # files are an hour old: nothing is half written
        self.now = 0.0
        self.file.write_text(text)
        self.allow = edgebus.AllowList(self.file, wall=lambda: time.time() + self.ahead_s)
        self.look()

    def look(self):
        self.now += 1.0
        return self.allow.changed(self.now)

    def staying(self):
        return {key for key in (KEY, OTHER, THIRD) if self.allow.cut_reason(key) is None}


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def test_unchanged_list_is_never_changed_and_looks_are_cheap(world, monkeypatch):
    monkeypatch.setattr("edgebus.allowlist.read_bounded", lambda *_: pytest.fail("the file was read again"))
    assert not any(world.look() for _ in range(100))
    version = world.allow.version
    monkeypatch.setattr("pathlib.Path.stat", lambda *_: pytest.fail("the file was looked at"))
    assert not world.allow.changed(world.now + LOOK_EVERY_S / 2)
    assert world.allow.version == version


def test_removed_key_may_not_connect_at_once_and_is_cut_within_two_looks(world):
    deny_keys(world.file, OTHER)
    assert not world.allow.permits(OTHER)
    assert not world.look()
    assert world.staying() == {KEY, OTHER}
    assert world.look()
    assert world.staying() == {KEY}
    assert world.allow.grant(OTHER) is None
    denial = world.allow.cut_reason(OTHER)
    assert (denial.code, "edgebus allow" in denial.detail) == ("forbidden", True)
    assert not world.look()


def test_added_key_and_changed_permissions_count_at_once(world):
    allow_keys(world.file, KEY, THIRD, options={"services": "sled.*", "max_links": "2"})
    version = world.allow.version
    assert world.allow.permits(THIRD)
    assert world.allow.version > version
    assert world.allow.grant(THIRD) == Grant("", ("sled.*",), max_links=2)
    assert world.allow.grant(KEY) == Grant("a", ("sled.*",), max_links=2)
    assert world.look()


@pytest.mark.parametrize("moment", ["empty", "gone", "half", "directory", "not utf-8", "unreadable list of others"])
def test_list_that_is_missing_for_a_moment_cuts_nobody_but_admits_nobody(world, moment):
    text = world.file.read_text()
    if moment == "half":
        world.file.write_text(text[: len(KEY) + 20])
    elif moment == "empty":
        world.file.write_text("")
    elif moment == "not utf-8":
        world.file.write_bytes(b"\xff" + text.encode())
    elif moment == "unreadable list of others":
        world.file.chmod(0o666)
    else:
        world.file.unlink()
        if moment == "directory":
            world.file.mkdir()
    assert not world.allow.permits(OTHER)
    assert not world.look()
    assert world.staying() == {KEY, OTHER}
    if moment == "directory":
        world.file.rmdir()
    world.file.write_text(text)
    world.file.chmod(0o600)
    assert not any(world.look() for _ in range(3))
    assert world.staying() == {KEY, OTHER}
    assert world.allow.permits(OTHER)


@pytest.mark.parametrize("end", ["empty", "gone"])
def test_list_that_stays_away_cuts_everybody_at_the_second_look(world, end):
    world.file.write_text("") if end == "empty" else world.file.unlink()
    assert [world.look() for _ in range(3)] == [False, True, False]
    assert world.staying() == set()


def test_flickering_key_is_not_cut_until_two_looks_miss_it(world):
    text = world.file.read_text()
    for _ in range(5):
        world.file.write_text(f"{KEY} a\n")
        assert not world.look()
        world.file.write_text(text)
        assert not world.look()
    assert world.staying() == {KEY, OTHER}


def test_half_written_line_grants_nothing_and_does_not_widen(world):
    """Cut after the name it would mean: everything, without limits."""
    whole = f"{KEY} a services=sled.*\n{OTHER} b services=sled.* requests_per_s=1\n"
    world.file.write_text(whole)
    world.look()
    world.ahead_s = 0.0  # from here on files are as young as they are
    world.file.write_text(whole[: whole.index(OTHER) + 42])
    assert not world.allow.permits(OTHER)
    world.look()
    assert world.allow.grant(OTHER) == Grant("b", ("sled.*",), requests_per_s=1.0)
    world.file.write_text(whole + f"{THIRD} new")
    assert (world.allow.permits(KEY), world.allow.permits(THIRD)) == (True, False)


def test_last_line_without_line_feed_counts_once_the_file_has_rested(world):
    world.ahead_s = 0.0
    world.file.write_text(f"{KEY} a\n{THIRD} new")
    assert not world.allow.permits(THIRD)
    world.ahead_s = 1.1
    assert world.allow.permits(THIRD)


def test_last_line_counts_by_looks_where_the_clock_says_nothing(world):
    """The file's time lies in the future, as after a clock that was put right."""
    world.ahead_s = -3600.0
    world.file.write_text(f"{KEY} a\n{THIRD} new")
    looks = 0
    while not world.allow.permits(THIRD):
        world.look()
        looks += 1
        assert looks < 4
    assert looks >= 2


def test_changes_within_one_tick_of_the_file_clock_are_seen(world):
    world.ahead_s = 0.0
    for key in (KEY, OTHER) * 20:
        world.file.write_text(f"{key}\n")  # same size, same inode, and often the same time stamp
        assert (world.allow.permits(KEY), world.allow.permits(OTHER)) == (key == KEY, key == OTHER)


def test_expiry_refuses_and_cuts_without_a_change_of_the_file(tmp_path):
    world = World(tmp_path, f"{KEY} a until=2031-12-31\n{OTHER} b\n")
    assert (world.allow.permits(KEY), world.look()) == (True, False)
    until = world.allow.grant(KEY).until
    world.ahead_s = until - time.time() + 1
    assert not world.allow.permits(KEY)
    assert world.look()
    assert world.staying() == {OTHER}
    assert world.allow.cut_reason(KEY).code == "expired_key"
    assert world.allow.grant(KEY).until == until  # the policy says why
    assert not world.look()


def test_any_admits_all_with_nothing_guarded():
    allow = edgebus.AllowList.any()
    assert (allow.permits(KEY), allow.cut_reason(KEY), allow.changed(1.0), allow.version) == (True, None, False, 0)
    assert allow.grant(KEY) == Grant()


# -- hostile files ----------------------------------------------------------------------------------


def test_pipe_does_not_hang_and_admits_nobody(tmp_path):
    os.mkfifo(tmp_path / "allowed")
    allow = edgebus.AllowList(tmp_path / "allowed")
    assert not allow.permits(KEY)
    assert not allow.changed(1.0)


def test_list_that_everybody_may_write_admits_nobody_and_is_told_once(tmp_path, caplog):
    file = tmp_path / "allowed"
    file.write_text(f"{KEY}\n")
    file.chmod(0o602)
    allow = edgebus.AllowList(file)
    assert not any(allow.permits(KEY) for _ in range(5))
    [record] = caplog.records
    assert "mode 0602 lets everybody write it, chmod o-w" in record.message
    file.chmod(0o664)
    assert allow.permits(KEY)


def test_list_of_another_user_admits_nobody(tmp_path, monkeypatch, caplog):
    file = tmp_path / "allowed"
    file.write_text(f"{KEY}\n")
    uid = file.stat().st_uid
    monkeypatch.setattr("os.geteuid", lambda: uid + 1)
    if uid == 0:
        os.chown(file, 12345, -1)
    assert not edgebus.AllowList(file).permits(KEY)
    assert "belongs to user" in caplog.text


def test_oversized_list_admits_nobody(tmp_path, caplog):
    file = tmp_path / "allowed"
    file.write_text(f"{KEY}\n" + "#" * MAX_LIST_BYTES)
    assert not edgebus.AllowList(file).permits(KEY)
    assert f"larger than {MAX_LIST_BYTES} bytes" in caplog.text
    file.write_text(f"{KEY}\n" + "#" * (MAX_LIST_BYTES - 42) + "\n")
    assert edgebus.AllowList(file).permits(KEY)


def test_many_bad_lines_are_a_few_warnings_without_their_text(tmp_path, caplog):
    file = tmp_path / "allowed"
    file.write_text("".join(f"hunter{n} secret\n" for n in range(1000)) + f"{KEY} x passphrase=hunter2\n")
    edgebus.AllowList(file)
    assert len(caplog.records) == 21
    assert "980 more such lines" not in caplog.text.split("\n")[0]
    assert "hunter" not in caplog.text
    assert "981 more such lines" in caplog.records[-1].message


def test_byte_order_mark_of_an_editor_is_no_part_of_the_first_key(tmp_path):
    file = tmp_path / "allowed"
    file.write_bytes(b"\xef\xbb\xbf" + f"{KEY} a\r\n".encode())
    assert edgebus.AllowList(file).permits(KEY)


# -- commands that change it ------------------------------------------------------------------------


def test_line_is_changed_in_place_and_comments_stay(tmp_path):
    file = tmp_path / "allowed"
    file.write_bytes(f"# ours\r\n{KEY}  lab phone   burst=2 requests_per_s=1 # desk 4\r\n\n# end".encode())
    done = allow_keys(file, KEY, OTHER, options={"burst": None, "services": "sled.*"})
    assert (done.added, done.updated) == (1, 1)
    assert file.read_bytes().decode() == (
        f"# ours\r\n{KEY} lab phone services=sled.* requests_per_s=1 # desk 4\r\n\n# end\n{OTHER} services=sled.*\n"
    )
    assert allow_keys(file, KEY, OTHER, options={"burst": None})[1:] == (0, 0)


def test_new_key_of_a_device_gets_what_the_old_one_has(tmp_path):
    file = tmp_path / "allowed"
    file.write_text(f"{KEY} phone services=sled.* requests_per_s=5\n")
    allow_keys(file, OTHER, like="phone", options={"requests_per_s": "6"})
    assert file.read_text().splitlines()[1] == f"{OTHER} phone services=sled.* requests_per_s=6"
    allow_keys(file, KEY, options={"until": "2031-12-31"})
    with pytest.raises(KeyFileError, match="no key and no name"):
        allow_keys(file, THIRD, like="nobody")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bytes_per_s": "fast"}, "bytes_per_s=fast cannot work: bytes_per_s= is no size"),
        ({"burst": "5"}, "needs requests_per_s="),
        ({"speed": "5"}, "an option is unknown"),
        ({"services": "a b"}, "patterns"),
        ({"services": f"a\n{THIRD}"}, "patterns"),
    ],
)
def test_permissions_that_cannot_work_change_nothing(tmp_path, options, message):
    file = tmp_path / "allowed"
    file.write_text(f"{KEY} a\n")
    for key in (KEY, OTHER):
        with pytest.raises(ConfigError, match=message):
            allow_keys(file, key, options=options)
    assert file.read_text() == f"{KEY} a\n"


def test_names_of_directories_cannot_write_lines_or_options(tmp_path):
    folder = tmp_path / f"a=b #c\n{THIRD} services=*"
    made = edgebus.generate_keys(folder)
    allow_keys(tmp_path / "allowed", folder / "node.key")
    allow = edgebus.AllowList(tmp_path / "allowed")
    assert (allow.permits(made.public), allow.permits(THIRD)) == (True, False)
    assert allow.grant(made.public).services == ()


def test_key_that_a_bad_line_shuts_out_is_not_called_allowed(tmp_path):
    file = tmp_path / "allowed"
    for text in (f"{KEY} a max_lnks=3\n", f"{KEY} a\n{KEY} a max_links=3\n"):
        file.write_text(text)
        with pytest.raises(KeyFileError, match="edgebus deny"):
            allow_keys(file, KEY)
        assert file.read_text() == text
        deny_keys(file, KEY)
        assert allow_keys(file, KEY).added == 1


def test_denying_takes_keys_names_and_files_and_nothing_else(tmp_path):
    phone = edgebus.generate_keys(tmp_path / "phone")
    file = tmp_path / "allowed"
    file.write_text(f"# top\n{KEY} lab\n{OTHER} lab # second\n{THIRD} x\n{phone.public} p\n# end\n")
    with pytest.raises(KeyFileError, match="'nobody' is no key and no name"):
        deny_keys(file, KEY, "nobody")
    assert KEY in file.read_text()
    assert [line.key for line in deny_keys(file, "lab", str(tmp_path / "phone" / "node.key"))] == [
        KEY,
        OTHER,
        phone.public,
    ]
    assert file.read_text() == f"# top\n{THIRD} x\n# end\n"


def test_link_to_a_list_stays_a_link_and_its_mode_stays(tmp_path):
    real = tmp_path / "real"
    real.write_text("")
    real.chmod(0o640)
    (tmp_path / "allowed").symlink_to(real)
    allow_keys(tmp_path / "allowed", KEY)
    assert (tmp_path / "allowed").is_symlink()
    assert (KEY in real.read_text(), real.stat().st_mode & 0o777) == (True, 0o640)


def test_changes_at_once_are_all_kept_and_readers_see_whole_lists(tmp_path):
    file = tmp_path / "allowed"
    file.write_text(f"{KEY} a services=sled.*\n")
    allow = edgebus.AllowList(file)
    keys = [f"{n:040d}" for n in range(24)]
    threads = [threading.Thread(target=lambda mine=keys[n::4]: [allow_keys(file, k) for k in mine]) for n in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert allow.permits(KEY)
    for thread in threads:
        thread.join(10)
    assert all(allow.permits(key) for key in keys)


def test_failed_change_leaves_the_list_and_no_file_behind(tmp_path, monkeypatch):
    file = tmp_path / "allowed"
    file.write_text(f"{KEY} a\n")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(KeyFileError, match="No space left"):
        allow_keys(file, OTHER)
    assert (file.read_text(), [path.name for path in tmp_path.iterdir()]) == (f"{KEY} a\n", ["allowed"])


def test_list_of_another_is_an_error_with_its_remedy(tmp_path, monkeypatch):
    def denied(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(edgebus.allowedit, "read_bounded", denied)
    (tmp_path / "allowed").write_text(f"{KEY}\n")
    with pytest.raises(edgebus.KeyFileError, match=f"{tmp_path}/allowed: Permission denied; run as the user"):
        allow_keys(tmp_path / "allowed", OTHER)
    monkeypatch.setattr(edgebus.allowedit.Path, "is_dir", denied)
    with pytest.raises(edgebus.KeyFileError, match=f"cannot look at {tmp_path}: Permission denied; run as the user"):
        allow_keys(tmp_path, OTHER)
