"""The hot path compiled and as plain Python: which one runs, and that the plain one works too."""

import importlib
import importlib.util
import os
import re
import runpy
import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
from setuptools.command.egg_info import FileList

from edgebus.forms import IN_CYTHON

HERE = Path(importlib.import_module("edgebus").__file__).parent
COMPILED = [".".join(path.relative_to(HERE).with_suffix("").parts) for path in sorted(HERE.rglob("*.pxd"))]
TESTS = Path(__file__).parent
SUITES = (
    "test_express.py", "test_express_large.py", "test_interrupts.py", "test_inbox.py", "test_requests.py",
    "test_interrupted_others.py", "test_copies.py", "test_failures.py",
)  # fmt: skip


def loaded(**environment):
    code = (
        "import importlib, sys, edgebus\n"
        "for name in sys.argv[1:]:\n"
        "    print(name, importlib.import_module(f'edgebus.{name}').__file__)\n"
    )
    names = [name for name in COMPILED if name not in IN_CYTHON]
    command = [sys.executable, "-c", code, *names]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=60, check=True)
    return dict(line.split(" ", 1) for line in done.stdout.splitlines())


def test_modules_with_types_are_compiled_wherever_a_compiler_is():
    if not shutil.which("cc"):
        pytest.skip("no compiler")
    assert len(COMPILED) > 8
    assert [name for name, path in loaded(EDGEBUS_PURE="").items() if path.endswith(".py")] == []
    assert all(importlib.util.find_spec(f"edgebus.{name}") for name in IN_CYTHON)


def test_plain_modules_are_seen_by_whoever_instruments_sources_as_they_are_loaded():
    code = (
        "import sys\n"
        "class Hook:\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        print(name)\n"
        "sys.meta_path.insert(0, Hook())\n"
        "import edgebus.wire, edgebus.shm.pool\n"
    )
    command = [sys.executable, "-c", code]
    environment = os.environ | {"EDGEBUS_PURE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert {"edgebus.wire", "edgebus.shm.pool"} <= set(done.stdout.split())


def test_without_the_names_of_libzmq_messages_go_through_pyzmq():
    code = (
        "import sys, zmq\n"
        "sys.modules['zmq.backend.cython._zmq'] = None  # it cannot be imported any more\n"
        "import edgebus\n"
        "with edgebus.Node('a', insecure=True) as server, edgebus.Node('b', insecure=True) as device:\n"
        "    server.handle('echo', lambda request: request.reply(request.payload))\n"
        "    link = device.connect(server.bind('tcp://127.0.0.1:0'))\n"
        "    print([link.request('echo', b'%d' % number).payload for number in range(3)])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[b'0', b'1', b'2']"


def test_plain_python_can_be_asked_for():
    assert [name for name, path in loaded(EDGEBUS_PURE="1").items() if not path.endswith(".py")] == []


def test_setup_compiles_what_is_said_to_be_compiled():
    from edgebus.forms import COMPILED as SAID

    names = [name for name in COMPILED if name not in IN_CYTHON]
    links, hubs = "link link_receiving link_sending liveness", "hub hub_collecting hub_links taps"
    untyped = f"arrays engine engine_delivering policy unended wire {links} {hubs}".split()
    assert sorted({*names, *untyped}) == sorted(SAID)
    text = (TESTS.parents[1] / "setup.py").read_text()
    named = text[text.index("BUS = (") :].partition(")")[0]
    assert sorted(re.findall(r'"([\w.]+)"', named)) == sorted(SAID)


@pytest.mark.skipif(sys.platform != "linux", reason="the scripts are for Linux")
@pytest.mark.parametrize("script", ["sanitize.sh", "fuzz.sh"])
def test_objects_that_are_built_anew_leave_those_that_a_process_has_mapped(tmp_path, script):
    """Written over in place, an object loses all that was relocated in it: its process dies, mostly as it ends."""
    lines = (TESTS.parents[1] / "scripts" / script).read_text().splitlines()
    copies = [line for line in lines if re.match(r"\s*cp .*\$work.*/lib/", line)]
    homes = {"edgekernels": tmp_path / "kernels" / "edgekernels", "edgebus": tmp_path / "edgebus"}
    homes = dict(list(homes.items())[: len(copies)])
    for name, home in homes.items():
        for folder, content in ((tmp_path / "work" / "lib" / name, b"new"), (home, b"old")):
            folder.mkdir(parents=True)
            (folder / "_object.so").write_bytes(content)
        (tmp_path / name).with_suffix(".mapped").hardlink_to(home / "_object.so")
    environment = os.environ | {"work": str(tmp_path / "work")}
    subprocess.run(["sh", "-ec", "\n".join(copies)], cwd=tmp_path, env=environment, timeout=60, check=True)
    assert homes
    for name, home in homes.items():
        assert (home / "_object.so").read_bytes() == b"new"
        assert (tmp_path / name).with_suffix(".mapped").read_bytes() == b"old"


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
def test_make_builds_anew_when_anything_that_is_compiled_has_changed():
    from edgebus.forms import COMPILED as SAID

    folder = TESTS.parents[1]
    command = ["make", "-s", "--eval", "sources: ; @echo $(SOURCES)", "sources"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=True)
    needed = {
        str(path.relative_to(folder))
        for top in ("edgebus", "kernels", "qpart")
        for path in (folder / top).rglob("*.p[yx][xd]")
    }
    needed |= {f"edgebus/{name.replace('.', '/')}.py" for name in SAID}
    needed |= {f"kernels/csrc/{path.name}" for path in (folder / "kernels" / "csrc").iterdir()}
    assert needed - set(done.stdout.split()) == set()


def test_a_source_distribution_has_all_that_is_compiled(monkeypatch):
    """What is translated is found by itself only in its translation, and what that includes not at all."""
    monkeypatch.chdir(TESTS.parents[1])
    packed = FileList()
    for line in Path("MANIFEST.in").read_text().splitlines():
        packed.process_template_line(line)
    needed = {str(path) for top in ("edgebus", "kernels", "qpart") for path in Path(top).rglob("*.p[yx][xd]")}
    assert len(needed) > 30
    assert needed - set(packed.files) == set()
    assert not [name for name in packed.files if name.endswith(".c") and not name.startswith("kernels/csrc/")]


@pytest.mark.parametrize("copied", [["kernels"], ["kernels", "edgebus"]])
def test_what_setup_names_is_there_in_a_copy_of_the_kernels_alone(tmp_path, monkeypatch, copied):
    """scripts/sanitize.sh and scripts/fuzz.sh build one."""
    build, setuptools = pytest.importorskip("Cython.Build"), pytest.importorskip("setuptools")
    for name in copied:
        (tmp_path / name).symlink_to(TESTS.parents[1] / name)
    sources = []

    def cythonize(modules, **options):
        sources.extend(source for module in modules for source in module.sources)
        return modules

    monkeypatch.setattr(build, "cythonize", cythonize)
    monkeypatch.setattr(setuptools, "setup", lambda **options: None)
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(TESTS.parents[1] / "setup.py"))
    assert {Path(source).parts[0] for source in sources} == set(copied)
    assert [source for source in sources if not Path(source).exists()] == []


def test_a_tree_without_the_object_runs_as_python(tmp_path):
    """Also beside what an older version has left there, an object for each module."""
    package = tmp_path / "edgebus"
    shutil.copytree(TESTS.parents[1] / "edgebus", package)
    for built in package.glob("_compiled.*.so"):
        built.rename(package / f"runner{EXTENSION_SUFFIXES[0]}")
    code = "import edgebus, edgebus.runner; edgebus.Node; print(edgebus.runner.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(tmp_path)}, cwd=tmp_path,
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == str(package / "runner.py")


def test_an_object_of_another_version_leaves_plain_python_and_says_so(tmp_path):
    package = tmp_path / "edgebus"
    shutil.copytree(TESTS.parents[1] / "edgebus", package)
    if not list(package.glob("_compiled.*.so")):
        pytest.skip("nothing is compiled")
    forms = package / "forms.py"
    forms.write_text(forms.read_text().replace("COMPILED = (\n", 'COMPILED = (\n    "a_later_one",\n'))
    code = "import edgebus, edgebus.runner; edgebus.Node; print(edgebus.runner.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(tmp_path)}, cwd=tmp_path,
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == str(package / "runner.py")
    assert "of another version, without edgebus.a_later_one" in done.stderr


def test_plain_python_passes_the_same_tests():
    suites = [str(TESTS / name) for name in SUITES if (TESTS / name).exists()]
    assert len(suites) > 3
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *suites]
    done = subprocess.run(
        command, env=os.environ | {"EDGEBUS_PURE": "1"}, cwd=TESTS.parents[1], capture_output=True, text=True,
        timeout=110, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.skipif(sys.platform != "linux", reason="cuts an ELF file")
@pytest.mark.parametrize("how", ["empty", "head", "half", "most", "foreign"])
def test_a_broken_object_leaves_plain_python_and_one_warning(tmp_path, how):
    """What is cut short must not be mapped at all: its missing pages end the process."""
    [built] = HERE.glob(f"_compiled{EXTENSION_SUFFIXES[0]}") or [None]
    if built is None:
        pytest.skip("no object here")
    package = tmp_path / "edgebus"
    shutil.copytree(HERE, package, ignore=shutil.ignore_patterns("*.c", "*.so", "__pycache__"))
    content = built.read_bytes()
    size = {"empty": 0, "head": 100, "half": len(content) // 2, "most": len(content) - 100}.get(how, 0)
    if how == "foreign":
        content = Path(importlib.import_module("_struct").__file__).read_bytes()  # of another name, or another Python
        size = len(content)
    broken = package / built.name
    broken.write_bytes(content[:size])
    code = "import edgebus, edgebus.runner, edgebus.wire; edgebus.Node; print(edgebus.runner.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(tmp_path), "EDGEBUS_PURE": ""}, cwd=tmp_path,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout.strip()) == (0, str(package / "runner.py")), done.stderr
    [line] = [line for line in done.stderr.splitlines() if "Warning" in line]
    assert str(broken) in line
    assert "build_ext --inplace" in line
    assert "EDGEBUS_PURE=1" in line
