"""Compiling the C code: once, again when anything has changed, and not at all where that cannot be."""

import stat

import pytest

from models.native import library as module
from models.native.library import described, load_library

needs_compiler = pytest.mark.skipif(module._compiler() is None, reason="there is no C compiler")


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
    assert len(compiled(tmp_path)) == 1
    source = tmp_path / "kernels.c"
    source.write_bytes(module.SOURCE.read_bytes() + b"\n")
    with monkeypatch.context() as patch:
        patch.setattr(module.subprocess, "run", refusing_to_compile(module.subprocess.run))
        assert fresh() is not None
        patch.setattr(module, "SOURCE", source)
        assert fresh() is None
    monkeypatch.setattr(module, "SOURCE", source)
    assert fresh() is not None
    assert len(compiled(tmp_path)) == 2


@needs_compiler
def test_a_damaged_library_is_compiled_again(tmp_path, fresh):
    library = module._compiled(module._compiler())
    assert library.is_relative_to(tmp_path)
    library.write_bytes(b"cut off")
    assert fresh() is not None
    assert library.stat().st_size > 1000


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
    monkeypatch.setattr(module, "load_library", fresh)
    assert described() is None


@pytest.mark.parametrize("text", ["exit 1", "echo version 1; [ $1 = --version ]", "echo version 2"])
def test_a_compiler_that_fails_is_no_error(tmp_path, monkeypatch, fresh, text):
    """One that does nothing at all, one that compiles nothing, one that says it has and leaves nothing."""
    monkeypatch.setenv("CC", str(script(tmp_path / "broken", text)))
    assert fresh() is None


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, monkeypatch, fresh):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert fresh() is None


def test_a_home_that_is_nowhere_or_a_compiler_that_cannot_be_named_is_no_error(monkeypatch, fresh):
    monkeypatch.setenv("CC", "unbalanced 'quotes")
    assert fresh() is None

    def nowhere():
        raise RuntimeError("no home")

    monkeypatch.delenv("CC")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(module.Path, "home", nowhere)
    assert fresh() is None


@needs_compiler
def test_the_compiler_of_the_environment_comes_first(tmp_path, monkeypatch, fresh):
    real, log = " ".join(module._compiler()), tmp_path / "log"
    monkeypatch.setenv("CC", f"{script(tmp_path / 'wrapped', f'echo $@ >> {log}; exec {real} $@')} -DNAMED=1")
    assert fresh() is not None
    assert "-DNAMED=1" in log.read_text()


@needs_compiler
def test_who_made_it_and_whether_it_has_threads(monkeypatch, fresh):
    assert described() == load_library().made_by
    monkeypatch.setattr(module, "_openmp", lambda: None)
    monkeypatch.setattr(module, "load_library", fresh)
    assert described().endswith(", for one thread")


def test_another_openmp_than_gnus_gives_no_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(module.torch, "__file__", str(tmp_path / "__init__.py"))
    assert module._openmp() is None
