"""The store: atomic artifacts, locks between processes, keys and code fingerprints."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import store
from bench.store import Store, code_fingerprint, default_root, key_of, write_atomically


def test_an_artifact_appears_only_when_it_is_complete(tmp_path):
    artifacts = Store(tmp_path)

    def make(folder: Path) -> None:
        (folder / "value").write_text("7")
        assert not artifacts.has("train", "k")

    assert artifacts.build("train", "k", make)
    assert (artifacts.path("train", "k") / "value").read_text() == "7"
    assert not artifacts.partial("train", "k").exists()


def test_a_failed_build_leaves_its_folder_for_the_next_one(tmp_path):
    artifacts = Store(tmp_path)

    def fail(folder: Path) -> None:
        (folder / "checkpoint").write_text("half")
        (folder / ".checkpoint.123.tmp").write_text("torn")
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        artifacts.build("train", "k", fail)
    assert not artifacts.has("train", "k")
    found = []
    artifacts.build("train", "k", lambda folder: found.extend(p.name for p in folder.iterdir()))
    assert found == ["checkpoint"]


def test_a_complete_artifact_is_not_made_again(tmp_path):
    artifacts = Store(tmp_path)
    artifacts.build("train", "k", lambda folder: write_atomically(folder / "value", "first"))
    assert not artifacts.build("train", "k", lambda folder: pytest.fail("made again"))


def _build_slowly(root: Path, log: Path) -> None:
    def make(folder: Path) -> None:
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.3)
        write_atomically(folder / "value", str(os.getpid()))

    Store(root).build("train", "k", make)


def test_of_two_processes_only_one_makes_an_artifact(tmp_path):
    context = multiprocessing.get_context("fork")
    log = tmp_path / "log"
    processes = [context.Process(target=_build_slowly, args=(tmp_path / "store", log)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    makers = log.read_text().split()
    assert len(makers) == 1
    assert (Store(tmp_path / "store").path("train", "k") / "value").read_text() == makers[0]


def test_a_killed_holder_frees_its_lock(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from bench.store import Store\n"
        f"with Store(Path({str(tmp_path)!r})).lock('a'):\n    print('held', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        os.kill(holder.pid, signal.SIGKILL)
        with Store(tmp_path).lock("a"):
            pass


def test_shared_locks_are_held_together(tmp_path):
    artifacts = Store(tmp_path)
    with artifacts.lock("machine", shared=True), artifacts.lock("machine", shared=True):
        pass


def test_a_write_replaces_the_whole_file_or_nothing(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, "old")
    write_atomically(path, b"new")
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_keys_depend_on_content_and_not_on_the_order_of_names():
    assert key_of({"a": 1, "b": [2]}) == key_of({"b": [2], "a": 1})
    assert key_of({"a": 1}) != key_of({"a": 1.5})
    assert key_of({"a": 1}) != key_of({"a": "1"})
    with pytest.raises(ValueError):
        key_of({"a": float("nan")})


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Return a function that writes the modules of a package and returns the package's name."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(**modules: str) -> str:
        name = f"package_of_{tmp_path.name}"  # no other test's: Python remembers imported packages
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
        for module, code in modules.items():
            (tmp_path / name / f"{module}.py").write_text(code.replace("PACKAGE", name))
        return name

    return write


def _fingerprint(name: str, module: str = "a") -> str:
    store._module_code.cache_clear()
    store._find.cache_clear()
    return code_fingerprint([f"{name}.{module}"])


def test_the_fingerprint_ignores_comments_and_docstrings_only(package, tmp_path):
    name = package(a='"""Old."""\ndef f(x):\n    """Old."""\n    return x + 1  # one\n')
    before = _fingerprint(name)
    path = tmp_path / name / "a.py"
    path.write_text('"""New."""\n\ndef f(x):\n    # two\n    return (x + 1)\n')
    assert _fingerprint(name) == before
    path.write_text("def f(x):\n    return x + 2\n")
    assert _fingerprint(name) != before


def test_the_fingerprint_covers_c_code_that_a_module_names(package, tmp_path):
    name = package(a='SOURCE = "kernel.c"\nOTHER = "nowhere.c"\n')
    nothing = _fingerprint(name)
    source = tmp_path / name / "kernel.c"
    source.write_text("int one;")
    before = _fingerprint(name)
    source.write_text("int two;")
    assert len({nothing, before, _fingerprint(name)}) == 3


@pytest.mark.parametrize(
    "statement",
    ["import PACKAGE.b", "from PACKAGE import b", "from PACKAGE.b import g", "def f():\n    import PACKAGE.b"],
)
def test_the_fingerprint_covers_imported_modules_of_the_package(package, tmp_path, statement):
    name = package(a=statement + "\n", b="import PACKAGE.c\ndef g(): pass\n", c="VALUE = 1\n")
    before = _fingerprint(name)
    (tmp_path / name / "c.py").write_text("VALUE = 2\n")
    assert _fingerprint(name) != before


def test_the_fingerprint_names_a_missing_module():
    with pytest.raises(ModuleNotFoundError, match=r"bench\.no_such"):
        code_fingerprint(["bench.no_such"])


def test_the_variable_chooses_the_store(monkeypatch, tmp_path):
    monkeypatch.setenv("NATBENCH_STORE", str(tmp_path))
    assert default_root() == tmp_path
    monkeypatch.delenv("NATBENCH_STORE")
    assert default_root() == Path.home() / ".cache" / "natbench" / "store"


def test_a_relative_import_counts_in_the_fingerprint(tmp_path, monkeypatch):
    package = tmp_path / "relative_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "family.py").write_text("from .helper import value\n")
    monkeypatch.syspath_prepend(tmp_path)
    prints = []
    for value in (1, 2):
        (package / "helper.py").write_text(f"value = {value}\n")
        prints.append(_fingerprint("relative_package", "family"))
    assert prints[0] != prints[1]


def _changes(name: str, file: Path, old: str, new: str) -> bool:
    """Tell whether a change of `file` changes the fingerprint of module `a` of the package `name`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(old)
    before = _fingerprint(name)
    assert _fingerprint(name) == before
    file.write_text(new)
    return _fingerprint(name) != before


@pytest.mark.parametrize(
    ("statement", "file"),
    [
        ("import {helper}", "{helper}.py"),
        ("from {helper} import f", "{helper}/__init__.py"),
        ("def g():\n    from {helper}.inner import f", "{helper}/inner.py"),
        ("from {helper}.inner import deep", "{helper}/inner/deep.py"),
        ("import {helper}.inner.deep", "{helper}/inner/__init__.py"),  # the code of a package around what is imported
    ],
    ids=["module", "package", "in-a-folder", "in-a-folder-of-a-folder", "package-around"],
)
def test_a_helper_beside_the_package_counts(package, tmp_path, statement, file):
    helper = f"helper_of_{tmp_path.name}"
    (tmp_path / helper / "inner").mkdir(parents=True)
    (tmp_path / helper / "inner" / "deep.py").touch()
    name = package(a=statement.format(helper=helper) + "\n")
    assert _changes(name, tmp_path / file.format(helper=helper), "f = 1\n", "f = 2\n")


def test_what_a_helper_imports_counts_too(package, tmp_path):
    helper = f"chain_of_{tmp_path.name}"
    (tmp_path / f"{helper}.py").write_text(f"import {helper}_end\n")
    name = package(a=f"import {helper}\n")
    assert _changes(name, tmp_path / f"{helper}_end.py", "f = 1\n", "f = 2\n")


@pytest.mark.parametrize("folder", ["site-packages", "dist-packages"])
def test_installed_packages_do_not_count(package, tmp_path, monkeypatch, folder):
    (tmp_path / folder).mkdir()
    monkeypatch.syspath_prepend(tmp_path / folder)
    library = f"library_of_{tmp_path.name}"
    name = package(a=f"import {library}.part, torch.nn.functional, json, itertools, numpy as np\n")
    assert not _changes(name, tmp_path / folder / library / "part.py", "f = 1\n", "f = 2\n")


def test_the_standard_library_does_not_count(package):
    name = package(a="import json.decoder, os, sys, xml.dom\nfrom collections import abc\n")
    assert store._find("json.decoder")[0] is not None
    assert _fingerprint(name) == _fingerprint(name)
    assert store._module_code(f"{name}.a", (name,))[1] == (name,)


def test_an_installed_family_counts(tmp_path, monkeypatch):
    folder, name = tmp_path / "site-packages", f"installed_of_{tmp_path.name}"
    monkeypatch.syspath_prepend(folder)
    (folder / name).mkdir(parents=True)
    (folder / name / "a.py").write_text("from . import b\n")
    assert _changes(name, folder / name / "b.py", "f = 1\n", "f = 2\n")


def test_a_fingerprint_runs_no_code(package, tmp_path):
    helper = f"explosive_of_{tmp_path.name}"
    (tmp_path / f"{helper}.py").write_text("raise SystemExit('run')\n")
    name = package(a=f"import {helper}\nimport {helper}.more\nraise SystemExit('run')\n")
    (tmp_path / name / "__init__.py").write_text("raise SystemExit('run')\n")
    _fingerprint(name)
    assert not {name, f"{name}.a", helper} & sys.modules.keys()


def test_code_that_is_none_counts_as_it_stands(package, tmp_path):
    helper = f"broken_of_{tmp_path.name}"
    name = package(a=f"def f():\n    import {helper}\n")
    assert _changes(name, tmp_path / f"{helper}.py", "print 1\n", "print 2\n")


@pytest.mark.parametrize(
    "statement", ["from ... import x", "from .....far import x", "from . import *", "import __main__"]
)
def test_imports_that_lead_nowhere_are_passed_over(package, statement):
    name = package(a=f"def f():\n    {statement}\n")
    assert _fingerprint(name)
