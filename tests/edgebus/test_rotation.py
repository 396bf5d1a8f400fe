"""A key is replaced in steps, each of which may be the last: there is a valid pair after every one of them."""

from __future__ import annotations

import os
import stat

import pytest

import edgebus
from edgebus.keyfiles import write_pair
from edgebus.keys import read_public_keys
from edgebus.rotation import activate_rotation, read_rotation, start_rotation


class Killed(BaseException):
    """What a kill looks like from inside: nothing after it runs but the kernel."""


@pytest.fixture
def folder(tmp_path):
    edgebus.generate_keys(tmp_path / "keys")
    return tmp_path / "keys"


def kill_at(monkeypatch, step):
    """Let `step` calls that change the disk happen, and none after them."""
    left = [step]

    def counted(original):
        def call(*arguments, **options):
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return original(*arguments, **options)

        return call

    for name in ("open", "replace", "rename", "unlink", "fsync", "fchown", "write"):
        monkeypatch.setattr(os, name, counted(getattr(os, name)))


def survives(folder):
    """A valid pair is in use, and no secret is readable by others."""
    for path in folder.glob("*secret*"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    return edgebus.load_keys(folder)


def test_rotation_by_hand(folder):
    first = edgebus.load_keys(folder)
    started = start_rotation(folder)
    assert (started.current, started.is_made, started.previous) == (first, True, None)
    assert edgebus.load_keys(folder) == first
    assert edgebus.read_public_key(folder / "node.key.new") == started.waiting.public != first.public
    again = start_rotation(folder)
    assert (again.waiting, again.is_made) == (started.waiting, False)
    done = activate_rotation(folder)
    assert (done.current, done.waiting, done.previous) == (started.waiting, None, first.public)
    assert edgebus.load_keys(folder) == started.waiting
    assert edgebus.read_public_key(folder / "node.key") == started.waiting.public
    assert edgebus.read_public_key(folder / "node.key.old") == first.public
    assert sorted(path.name for path in folder.iterdir()) == [
        "node.key",
        "node.key.old",
        "node.key_secret",
        "node.key_secret.old",
    ]
    survives(folder)
    with pytest.raises(edgebus.KeyFileError, match="no key waits"):
        activate_rotation(folder)
    second = start_rotation(folder, force=True)
    assert start_rotation(folder, force=True).waiting != second.waiting


@pytest.mark.parametrize("which", ["start", "activate", "keygen --force"])
def test_killed_between_any_two_steps_leaves_a_valid_pair_and_finishes_when_called_again(folder, which):
    act = {
        "start": start_rotation,
        "activate": activate_rotation,
        "keygen --force": lambda path: edgebus.generate_keys(path, force=True),
    }[which]
    for step in range(200):
        before = edgebus.load_keys(folder)
        for path in folder.glob("*.new"):
            path.unlink()
        waiting = start_rotation(folder).waiting if which == "activate" else None
        with pytest.MonkeyPatch.context() as patch:
            kill_at(patch, step)
            try:
                act(folder)
            except Killed:
                killed = True
            else:
                killed = False
        after = survives(folder)
        assert which == "keygen --force" or after in {before, waiting}
        if not killed:
            break
        if which == "activate":
            try:
                assert activate_rotation(folder).current == waiting
            except edgebus.KeyFileError as error:
                assert "no key waits" in str(error)  # all was done already  # noqa: PT017
            assert edgebus.load_keys(folder) == waiting
        else:
            assert start_rotation(folder).current == after
        assert edgebus.read_public_key(folder / "node.key") == edgebus.load_keys(folder).public
        assert not list(folder.glob(".*"))
    assert not killed
    assert step > 5


def test_the_waiting_file_itself_takes_the_place_of_the_one_in_use(folder):
    """Renamed, not written anew: whoever reads in that moment finds one pair or the other."""
    start_rotation(folder)
    waiting = (folder / "node.key_secret.new").stat().st_ino
    with open(folder / "node.key_secret") as before:
        activate_rotation(folder)
        assert "secret-key" in before.read()
    assert (folder / "node.key_secret").stat().st_ino == waiting


def test_full_disk_is_one_line_and_changes_nothing(folder, monkeypatch):
    first = edgebus.load_keys(folder)

    def full(*_):
        raise OSError(28, "No space left on device")

    waiting = start_rotation(folder).waiting
    monkeypatch.setattr(os, "fsync", full)
    for act in (activate_rotation, lambda path: start_rotation(path, force=True)):
        with pytest.raises(edgebus.KeyFileError, match="No space left on device; the pair in use is as valid") as told:
            act(folder)
        assert "\n" not in str(told.value)
    state = read_rotation(folder)
    assert (state.current, state.waiting) == (first, waiting)
    assert not list(folder.glob(".*"))


def test_waiting_pair_that_is_none_is_never_put_in_place(folder):
    first = edgebus.load_keys(folder)
    start_rotation(folder)
    (folder / "node.key_secret.new").write_text("nonsense")
    for act in (activate_rotation, start_rotation):
        with pytest.raises(edgebus.KeyFileError, match=r"node\.key_secret\.new"):
            act(folder)
    assert edgebus.load_keys(folder) == first
    assert start_rotation(folder, force=True).is_made


def test_rotation_needs_a_pair_to_follow(tmp_path):
    for act in (start_rotation, activate_rotation, read_rotation):
        with pytest.raises(edgebus.KeyFileError, match="edgebus keygen"):
            act(tmp_path)
    with pytest.raises(edgebus.KeyFileError, match="no key directory"):
        start_rotation(tmp_path / "nowhere")


# -- key files --------------------------------------------------------------------------------------


def test_several_server_keys_are_read_in_order_and_once(folder):
    state = start_rotation(folder)
    both = folder / "server.key"
    both.write_text((folder / "node.key").read_text() * 2 + (folder / "node.key.new").read_text())
    keys = (state.current.public, state.waiting.public)
    assert read_public_keys(both) == keys
    assert edgebus.read_public_key(both) == keys[0]
    assert read_public_keys(keys[1]) == (keys[1],)
    both.write_text("".join(f'public-key = "{n:040d}"\n' for n in range(9)))
    with pytest.raises(edgebus.KeyFileError, match="has 9 keys, at most 8"):
        read_public_keys(both)


def test_halves_of_two_pairs_are_no_pair(folder, tmp_path):
    one, other = edgebus.load_keys(folder), edgebus.generate_keys(tmp_path / "other")
    mixed = edgebus.Keys(one.public, other.secret)
    write_pair(mixed, folder / "node.key_secret", folder / "node.key")
    with pytest.raises(edgebus.KeyFileError, match="not of its secret-key"):
        edgebus.load_keys(folder)


@pytest.mark.parametrize("bits", [0o770, 0o707, 0o720])
def test_secret_in_a_directory_where_others_can_replace_it_is_refused(folder, bits):
    folder.chmod(bits)
    with pytest.raises(edgebus.KeyFileError, match=f"mode {bits:04o}, others can replace the key: chmod 700"):
        edgebus.load_keys(folder)
    folder.chmod(0o1777)  # only the owner may replace a file here, as in a mounted secret
    edgebus.load_keys(folder)


def test_files_that_are_none_are_refused_without_waiting(folder):
    secret = folder / "node.key_secret"
    secret.unlink()
    os.mkfifo(secret, 0o600)
    with pytest.raises(edgebus.KeyFileError, match="not a regular file"):
        edgebus.load_keys(folder)
    secret.unlink()
    secret.touch(0o600)
    secret.write_bytes(bytes(70_000))
    with pytest.raises(edgebus.KeyFileError, match="larger than"):
        edgebus.load_keys(folder)


def test_key_is_written_over_a_link_and_not_through_it(folder, tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("precious")
    secret = folder / "node.key_secret"
    secret.unlink()
    secret.symlink_to(outside)
    with pytest.raises(edgebus.KeyFileError, match="force"):
        edgebus.generate_keys(folder)
    secret.unlink()
    secret.symlink_to(tmp_path / "not there yet")
    with pytest.raises(edgebus.KeyFileError, match="force"):
        edgebus.generate_keys(folder)
    secret.unlink()
    secret.symlink_to(outside)
    made = edgebus.generate_keys(folder, force=True)
    assert (outside.read_text(), secret.is_symlink(), edgebus.load_keys(folder)) == ("precious", False, made)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_root_leaves_files_to_those_they_belong_to(folder):
    os.chown(folder, 12345, 12345)
    os.chown(folder / "node.key_secret", 12345, 12345)
    start_rotation(folder)
    activate_rotation(folder)
    edgebus.add_to_allow_list(folder, "0" * 40)
    assert {path.stat().st_uid for path in folder.glob("*secret*")} == {12345}
    assert (folder / "allowed_keys").stat().st_uid == 12345


def test_public_half_of_a_pair_that_waits_no_more_is_not_put_in_place(folder):
    """Its secret was thrown away, or is kept elsewhere: the key was said to have changed, and had not."""
    first = edgebus.load_keys(folder)
    start_rotation(folder)
    (folder / "node.key_secret.new").unlink()
    with pytest.raises(edgebus.KeyFileError, match="no key waits"):
        activate_rotation(folder)
    assert edgebus.load_keys(folder) == first
    waiting = start_rotation(folder).waiting
    assert activate_rotation(folder).current == waiting
