"""Compiling the C code: once, again when anything has changed, and not at all where that cannot be."""

import os
import shutil
import stat

import pytest

from models.native import library as module
from models.native.library import load_library, made_by

needs_compiler = pytest.mark.skipif(load_library() is None, reason="there is no C compiler")


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """Return a function that loads the library with nothing remembered; what is compiled lies in `tmp_path`."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return load_library.__wrapped__


def compiled(folder):
    return sorted(path.name for path in (folder / "natbench").iterdir())


@needs_compiler
def test_it_is_compiled_once_and_again_for_other_code(tmp_path, monkeypatch, fresh):
    assert fresh() is not None
    first = compiled(tmp_path)
    assert len(first) == 1
    monkeypatch.setattr(module.subprocess, "run", refusing_to_compile(module.subprocess.run))
    assert fresh() is not None
    source = tmp_path / "kernels.c"
    source.write_bytes(module.SOURCE.read_bytes() + b"\n")
    monkeypatch.setattr(module, "SOURCE", source)
    assert fresh() is None
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(module, "SOURCE", source)
    assert fresh() is not None
    assert len(compiled(tmp_path)) == 2


def refusing_to_compile(run):
    def checked(command, **options):
        if "-shared" in command:
            raise module.subprocess.CalledProcessError(1, command)
        return run(command, **options)

    return checked


def script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IEXEC)
    return path


def test_without_a_compiler_there_is_none(monkeypatch, fresh):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(module, "COMPILERS", ("no-such-compiler",))
    assert fresh() is None
    assert made_by.__wrapped__() is None


@pytest.mark.parametrize("text", ["exit 1", "echo version 1; [ $1 = --version ]", "echo version 2"])
def test_a_compiler_that_fails_is_no_error(tmp_path, monkeypatch, fresh, text):
    """One that does nothing at all, one that compiles nothing, one that says it has and leaves nothing."""
    monkeypatch.setenv("CC", str(script(tmp_path / "broken", text)))
    assert fresh() is None


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, monkeypatch, fresh):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert fresh() is None


@needs_compiler
def test_the_compiler_of_the_environment_comes_first(tmp_path, monkeypatch, fresh):
    real = shutil.which(os.environ.get("CC", "").split()[0] if os.environ.get("CC") else "cc") or shutil.which("gcc")
    log = tmp_path / "log"
    monkeypatch.setenv("CC", f"{script(tmp_path / 'wrapped', f'echo $@ >> {log}; exec {real} $@')} -DNAMED=1")
    assert fresh() is not None
    assert "-DNAMED=1" in log.read_text()


@needs_compiler
def test_who_made_it():
    assert made_by()


def test_threads_are_those_of_the_only_openmp(tmp_path, monkeypatch):
    maps = tmp_path / "maps"
    monkeypatch.setattr(module, "MAPS", maps)
    assert module._openmp() == (None, None)  # the system does not tell
    maps.write_text("7f0-7f1 r--p 0 0:0 1  /a/libgomp.so.1\n7f1-7f2 r--p 0 0:0 1  /b/libgomp-1234.so.1\n")
    assert module._openmp() == (None, None)
    maps.write_text("7f0-7f1 r--p 0 0:0 1  /lib/libc.so.6\n")
    assert module._openmp() == (None, None)
