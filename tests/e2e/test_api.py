"""`sled api` as a process before `sled serve` with the real small model, asked by curl where there is one."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
import urllib.request

import pytest

from tests.e2e.conftest import run

pytestmark = [pytest.mark.net, pytest.mark.model]

QUESTION = "Why is the sky blue?"


@pytest.fixture
def api(server, keys):
    """A process; what it printed when it was ready."""
    options = [
        "--server",
        server["endpoint"],
        "--server-key",
        str(keys / "server" / "node.key"),
        "--keys",
        str(keys / "device"),
    ]
    command = [sys.executable, "-m", "sled.cli", "api", "--http", "127.0.0.1:0", "--drafter", "smollm2-12m", "--json"]
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        guard = threading.Timer(100, process.kill)
        guard.start()
        try:
            line = process.stdout.readline()
            assert line, process.stderr.read()
            yield process, json.loads(line)
        finally:
            guard.cancel()
            process.kill()


def post(url, body):
    """By curl as the guide has it; by Python where there is no curl."""
    if shutil.which("curl"):
        command = [
            "curl",
            "-sN",
            "--max-time",
            "60",
            url,
            "-H",
            "content-type: application/json",
            "-d",
            json.dumps(body),
        ]
        return subprocess.run(command, capture_output=True, check=True).stdout
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return response.read()


def test_real_answer_is_the_one_of_sled_generate_and_sigterm_ends_it(api, generate):
    process, ready = api
    assert (ready["model"], ready["drafter"]) == ("smollm2-135m", "smollm2-12m")
    body = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 12, "temperature": 0}
    reply = json.loads(post(f"{ready['url']}/v1/chat/completions", body))
    direct = generate(QUESTION, "--json").json
    assert reply["choices"][0]["message"]["content"] == direct["text"]
    assert reply["usage"]["completion_tokens"] == len(direct["tokens"])
    streamed = post(f"{ready['url']}/v1/chat/completions", body | {"stream": True}).decode()
    chunks = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == direct["text"]
    assert streamed.endswith("data: [DONE]\n\n")
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer"}},
        "required": ["n"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    formed = json.loads(post(f"{ready['url']}/v1/chat/completions", body | {"response_format": form, "max_tokens": 24}))
    assert formed["choices"][0]["message"]["content"].lstrip().startswith("{")
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (["--http", "0.0.0.0:0"], 2, "--token-file"),
        (["--http", "127.0.0.1:0", "--timeout", "0.2"], 1, "127.0.0.1:9"),
    ],
)
def test_what_cannot_start_says_why_in_one_line(options, status, words):
    ran = run("sled.cli", "api", "--server", "tcp://127.0.0.1:9", "--insecure", *options)
    assert (ran.status, ran.err.count("\n")) == (status, 1)
    assert words in ran.err
