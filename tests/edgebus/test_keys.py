"""Keys on disk, allow-lists, the ZAP answer and what monitor events mean; no sockets."""

from __future__ import annotations

import errno
import stat

import pytest
import zmq.auth
from zmq.utils import z85

import edgebus
from edgebus.handshake import HandshakeWatch
from edgebus.zap import zap_answer

KEY = "0123456789abcdefghijklmnopqrstuvwxyzABCD"
OTHER = "ABCDabcdefghijklmnopqrstuvwxyz0123456789"


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_generated_keys_load_with_strict_modes_and_with_pyzmq(tmp_path):
    folder = tmp_path / "new" / "keys"
    made = edgebus.generate_keys(folder)
    assert edgebus.load_keys(folder) == made
    assert (mode(folder), mode(folder / "node.key_secret")) == (0o700, 0o600)
    public, secret = zmq.auth.load_certificate(folder / "node.key_secret")
    assert (public.decode(), secret.decode()) == (made.public, made.secret)
    assert zmq.auth.load_certificate(folder / "node.key") == (made.public.encode(), None)
    assert made.secret not in (folder / "node.key").read_text()
    assert made.secret not in repr(made)
    assert edgebus.read_public_key(folder / "node.key") == edgebus.read_public_key(made.public) == made.public


def test_keys_of_pyzmq_load_here(tmp_path):
    zmq.auth.create_certificates(tmp_path, "node")
    (tmp_path / "node.key_secret").chmod(0o600)
    public, secret = zmq.auth.load_certificate(tmp_path / "node.key_secret")
    assert edgebus.load_keys(tmp_path) == edgebus.Keys(public.decode(), secret.decode())


def test_keys_are_replaced_only_by_force(tmp_path):
    first = edgebus.generate_keys(tmp_path)
    with pytest.raises(edgebus.KeyFileError, match="force"):
        edgebus.generate_keys(tmp_path)
    assert edgebus.load_keys(tmp_path) == first
    assert edgebus.generate_keys(tmp_path, force=True) != first


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o660, 0o644])
def test_secret_readable_by_others_names_chmod(tmp_path, bits):
    edgebus.generate_keys(tmp_path)
    (tmp_path / "node.key_secret").chmod(bits)
    with pytest.raises(edgebus.KeyFileError, match="chmod 600"):
        edgebus.load_keys(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b'secret-key = "short"', b'public-key = "' + KEY.encode() + b'"']
)
def test_malformed_secret_is_a_key_file_error(tmp_path, content):
    file = tmp_path / "node.key_secret"
    file.write_bytes(content)
    file.chmod(0o600)
    with pytest.raises(edgebus.KeyFileError, match="keygen"):
        edgebus.load_keys(tmp_path)


def test_missing_files_are_key_file_errors(tmp_path):
    with pytest.raises(edgebus.KeyFileError, match="edgebus keygen"):
        edgebus.load_keys(tmp_path / "nowhere")
    for wrong in (tmp_path / "nowhere", "tooshort", str(tmp_path), "\0"):
        with pytest.raises(edgebus.KeyFileError):
            edgebus.read_public_key(wrong)


def test_allow_list_reads_lines_and_notices_changes(tmp_path):
    file = tmp_path / "allowed"
    allow = edgebus.AllowList.from_file(file)
    assert not allow.permits(KEY)
    file.write_text(f"# devices\n\n{KEY} laptop # in the office\nnonsense\n{OTHER}x\n")
    assert allow.permits(KEY)
    assert not allow.permits(OTHER)
    file.write_text(f"{OTHER}\n")
    assert (allow.permits(KEY), allow.permits(OTHER)) == (False, True)
    file.write_bytes(b"\xff" + KEY.encode())
    assert not allow.permits(OTHER)
    file.unlink()
    assert not allow.permits(OTHER)
    file.mkdir()
    assert not allow.permits(OTHER)
    assert edgebus.AllowList.any().permits(KEY)


def test_adding_to_an_allow_list_is_idempotent(tmp_path):
    edgebus.generate_keys(tmp_path / "server")
    phone = edgebus.generate_keys(tmp_path / "phone")
    arguments = (tmp_path / "server", tmp_path / "phone" / "node.key", KEY)
    assert edgebus.add_to_allow_list(*arguments) == 2
    assert edgebus.add_to_allow_list(*arguments) == 0
    file = tmp_path / "server" / "allowed_keys"
    assert mode(file) == 0o600
    assert file.read_text().splitlines()[1:] == [f"{phone.public} phone", KEY]
    with pytest.raises(edgebus.KeyFileError):
        edgebus.add_to_allow_list(tmp_path / "server", OTHER, tmp_path / "missing")
    assert OTHER not in file.read_text()


@pytest.mark.parametrize("make", [edgebus.AllowList, edgebus.AllowList.from_file])
@pytest.mark.parametrize("nothing", [None, 0, True, b"bytes", object()])
def test_allow_list_without_a_path_admits_nobody_by_mistake(make, nothing):
    with pytest.raises(TypeError, match=r"AllowList\.any\(\)"):
        make(nothing)


def test_allow_list_lines_may_have_tabs_and_malformed_ones_are_warned_about_once(tmp_path, caplog):
    file = tmp_path / "allowed"
    allow = edgebus.AllowList.from_file(file)
    file.write_text(f"# ours\n\n{KEY}\tphone\n  {OTHER} \n{KEY[:-1]} my secret\n")
    assert allow.permits(KEY)
    assert allow.permits(OTHER)
    [record] = caplog.records
    assert "allowed line 5 allows nobody" in record.message
    assert KEY[:-1] not in record.message
    file.write_text(file.read_text() + "# changed\n")
    assert allow.permits(KEY)
    assert len(caplog.records) == 1
    file.write_text(file.read_text() + "another\n")
    assert allow.permits(KEY)
    assert len(caplog.records) == 2


def test_directory_of_others_is_refused_and_left_as_it_is(tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o755)
    with pytest.raises(edgebus.KeyFileError, match="mode 0755, open to others: chmod 700"):
        edgebus.generate_keys(shared)
    assert (mode(shared), list(shared.iterdir())) == (0o755, [])
    shared.chmod(0o700)
    edgebus.generate_keys(shared)


def test_allowing_in_a_missing_directory_makes_no_file(tmp_path):
    for missing in (tmp_path / "servr", tmp_path / "nowhere" / "allowed_keys"):
        with pytest.raises(edgebus.KeyFileError, match="edgebus keygen"):
            edgebus.add_to_allow_list(missing, KEY)
    assert list(tmp_path.iterdir()) == []
    for name in ("allowed_keys", "allowed", "devices.txt"):
        assert edgebus.add_to_allow_list(tmp_path / name, KEY) == 1


def zap(mechanism=b"CURVE", key=KEY, version=b"1.0", extra=()):
    return [version, b"42", b"edgebus", b"10.0.0.7", b"", mechanism, z85.decode(key), *extra]


def test_zap_grants_the_key_as_user_id():
    answer = zap_answer(zap(), edgebus.AllowList.any())
    assert answer == [b"1.0", b"42", b"200", b"OK", KEY.encode(), b""]


@pytest.mark.parametrize(
    ("frames", "allow"),
    [
        (zap(), None),
        (zap(), edgebus.AllowList.from_file("/nowhere")),
        (zap(mechanism=b"NULL"), edgebus.AllowList.any()),
        (zap(mechanism=b"PLAIN"), edgebus.AllowList.any()),
        (zap(version=b"2.0"), edgebus.AllowList.any()),
        (zap(extra=(b"more",)), edgebus.AllowList.any()),
        ([*zap()[:2], b"another domain", *zap()[3:]], edgebus.AllowList.any()),
        (zap()[:-1], edgebus.AllowList.any()),
        ([*zap()[:-1], b"short"], edgebus.AllowList.any()),
        ([], edgebus.AllowList.any()),
    ],
)
def test_zap_refuses_everything_else(frames, allow):
    answer = zap_answer(frames, allow)
    assert (answer[2], answer[4]) == (b"400", b"")


def test_zap_refuses_a_key_that_has_expired_or_whose_line_is_malformed(tmp_path):
    for rest, status in (("until=2001-01-01", b"400"), ("unitl=2001-01-01", b"400"), ("max_links=2", b"200")):
        (tmp_path / "allowed").write_text(f"{KEY} a {rest}\n")
        assert zap_answer(zap(), edgebus.AllowList.from_file(tmp_path / "allowed"))[2] == status


def follow(secure, *events):
    watch = HandshakeWatch("tcp://h:1", secure=secure)
    return watch, [verdict for verdict in (watch.handle(*event) for event in events) if verdict is not None]


TRY = [("CONNECT_DELAYED", 115), ("CONNECTED", 9)]
CUT = [*TRY, ("HANDSHAKE_FAILED_NO_DETAIL", errno.EPIPE), ("DISCONNECTED", 9)]


def test_good_link_connects_and_disconnects():
    _, verdicts = follow(True, *TRY, ("HANDSHAKE_SUCCEEDED", 0), ("DISCONNECTED", 9), *TRY, ("HANDSHAKE_SUCCEEDED", 0))
    assert [verdict.what for verdict in verdicts] == ["connected", "disconnected", "connected"]


def test_cuts_after_a_first_success_are_never_a_wrong_key():
    _, verdicts = follow(True, *TRY, ("HANDSHAKE_SUCCEEDED", 0), ("DISCONNECTED", 9), *CUT * 50)
    # Each third one only asks for another key, where several were given.
    assert [verdict.what for verdict in verdicts] == ["connected", "disconnected", *["doubtful"] * 16]


def test_three_cut_handshakes_in_a_row_are_a_wrong_key_and_two_a_restart():
    assert follow(True, *CUT, *CUT)[1] == []
    assert follow(True, *CUT, *CUT, *TRY, ("HANDSHAKE_SUCCEEDED", 0), ("DISCONNECTED", 9), *CUT, *CUT)[1][-1].code == ""
    assert [verdict.code for verdict in follow(True, *CUT, *CUT, *CUT)[1]] == ["wrong_server_key"]
    assert [verdict.what for verdict in follow(False, *CUT, *CUT, *CUT, *CUT)[1]] == ["unclear", "unclear"]


def test_refused_key_and_other_mechanism_are_final_at_once():
    assert follow(True, *TRY, ("HANDSHAKE_FAILED_AUTH", 400))[1][0].code == "key_not_allowed"
    assert follow(True, *TRY, ("HANDSHAKE_FAILED_PROTOCOL", 1))[1][0].code == "wrong_server_key"


def test_description_tells_the_cases_apart():
    refused = ("CONNECT_DELAYED", 115)
    mute = [*TRY, ("HANDSHAKE_FAILED_NO_DETAIL", errno.EAGAIN), ("DISCONNECTED", 9)]
    assert "nobody listens at tcp://h:1 (2 attempts)" in follow(True, refused, refused)[0].describe()
    assert "(1 attempt)" in follow(True, refused)[0].describe()
    assert "never speaks ZMTP" in follow(True, *mute, *mute, *mute)[0].describe()
    assert "accepted and closed 2" in follow(False, *CUT, *CUT)[0].describe()
    assert "sent no welcome" in follow(True, *TRY, ("HANDSHAKE_SUCCEEDED", 0))[0].describe()
