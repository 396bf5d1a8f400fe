"""Settings of a server: file, environment and options, and how each bad value is refused in one line."""

from __future__ import annotations

import pytest

from edgebus.errors import ConfigError
from sled.run.ranks import rank_of
from sled.run.serving import server_limits
from sled.settings import ServeSettings, load_settings

GIVEN = {"model": "smollm2-135m", "bind": "tcp://127.0.0.1:0", "insecure": True}


def test_options_go_over_environment_over_file(tmp_path):
    file = tmp_path / "sled.toml"
    file.write_text(
        'model = "smollm2-135m"\nbind = "tcp://127.0.0.1:0"\nkeys = "own"\nmax_sessions = 3\nrate = 5.0\n'
        'kv_bytes = "1KiB"\n'
        '[[replicas]]\nendpoint = "tcp://10.0.0.6:5555"\nserver_key = "other.key"\n'
    )
    (tmp_path / "other.key").write_text("key")
    found = load_settings(file, {"SLED_SERVE_RATE": "6", "SLED_SERVE_MAX_SESSIONS": "4", "PATH": "x"}, {"rate": 7.0})
    assert (found.max_sessions, found.rate, found.num_kv_bytes) == (4, 7.0, 1024)
    assert found.keys == str(tmp_path / "own")
    assert found.model == "smollm2-135m"
    assert found.replicas[0].server_key == str(tmp_path / "other.key")


def test_model_beside_the_file_is_found_there(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "sled.toml").write_text('model = "model"\nbind = "tcp://127.0.0.1:0"\ninsecure = true\n')
    assert load_settings(tmp_path / "sled.toml", {}).model == str(tmp_path / "model")


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"model": ""}, "give --model"),
        ({"bind": ""}, "give --bind"),
        ({"keys": "own"}, "insecure"),
        ({"kv_bytes": "much"}, "kv_bytes is 'much'"),
        ({"kv_bytes": "0"}, "kv_bytes"),
        ({"kv_bytes": "2 GiB"}, "kv_bytes"),
        ({"page_tokens": -1}, "page_tokens"),
        ({"page_tokens": 24}, "power of two"),
        ({"max_sessions": 0}, "max_sessions"),
        ({"windows": "wide"}, "windows"),
        ({"rate": 0.0}, "rate"),
        ({"rate": float("nan")}, "rate"),
        ({"drain_s": -1.0}, "drain_s"),
        ({"max_window": 65}, "max_window"),
        ({"dtype": "int4"}, "dtype"),
        ({"dtype": "float16"}, "float16"),
        ({"device": "tpu"}, "device"),
        ({"attention": "magic"}, "attention"),
        ({"engine": "magic"}, "engine"),
        ({"engine": "native", "dtype": "bfloat16"}, "engine native has dtype float32 only, not bfloat16"),
        ({"engine": "native", "device": "cuda"}, "engine native has device cpu only, not cuda"),
        ({"engine": "native", "attention": "torch"}, "engine native has attention auto only, not torch"),
        ({"engine": "torch", "activations": "int8"}, "int8 needs the native engine: take engine auto or native"),
        ({"activations": "int8", "dtype": "bfloat16"}, "int8 needs the native engine, which has no dtype bfloat16"),
        ({"attention": "triton"}, "needs device cuda"),
        ({"attention": "cpu", "device": "cuda"}, "does not run"),
        ({"share_prefixes": "some"}, "share_prefixes"),
        ({"announce_at": ["tcp://a:1"]}, "announce_at without announce"),
        ({"tensor_parallel": 0}, "tensor_parallel"),
        ({"replicas": [{"endpoint": "tcp://a:1", "server_key": "k"}]}, "drops server_key"),
    ],
)
def test_each_bad_value_is_one_line_that_names_it(values, word):
    with pytest.raises(ConfigError, match=word) as error:
        load_settings(None, {}, GIVEN | values)
    assert "\n" not in str(error.value)


def test_unknown_keys_are_refused_with_the_nearest_one(tmp_path):
    file = tmp_path / "sled.toml"
    file.write_text("max_session = 3\n")
    with pytest.raises(ConfigError, match="is max_sessions meant"):
        load_settings(file, {})
    with pytest.raises(ConfigError, match="SLED_SERVE_RATES"):
        load_settings(None, {"SLED_SERVE_RATES": "1"}, GIVEN)
    with pytest.raises(ConfigError, match="cannot read"):
        load_settings(tmp_path / "absent.toml", {})


def test_settings_become_the_machines_bounds():
    limits = server_limits(ServeSettings(model="m", bind="b", max_sessions=5, rate=200.0, share_prefixes="owner"))
    assert (limits.max_sessions, limits.max_sessions_per_owner, limits.share) == (5, 5, "owner")
    assert (limits.rate, limits.max_rate) == (200.0, 200.0)


@pytest.mark.parametrize(
    ("environment", "word"),
    [({}, "torchrun"), ({"RANK": "0", "WORLD_SIZE": "3"}, "started 3"), ({"RANK": "x", "WORLD_SIZE": "2"}, "torchrun")],
)
def test_processes_that_torchrun_did_not_start_are_refused(environment, word):
    with pytest.raises(ConfigError, match=word):
        rank_of(environment, 2)
    assert rank_of(environment, 1) == 0


def test_rank_is_what_torchrun_says():
    assert [rank_of({"RANK": str(rank), "WORLD_SIZE": "2"}, 2) for rank in range(2)] == [0, 1]
