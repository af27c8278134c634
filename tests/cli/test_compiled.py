"""Programs are kept between runs, only where nobody else can write, and a damaged one never disturbs a run."""

import os
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from jaxinvert.cli import compiled

PACKAGE = Path(compiled.__file__).parents[1]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A user's empty cache folder, and a JAX that nobody told where to keep programs."""
    before = {name: getattr(jax.config, name) for name in ("jax_compilation_cache_dir", *compiled._SETTINGS)}
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield tmp_path / "cache"
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def forget_settings():
    """What the end of a process forgets."""
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()


def compile_program():
    """Compiles the same program as every other call, as another process would."""
    jax.jit(lambda x: jnp.sin(x) * 3 + 1).lower(jnp.ones(3)).compile()


def test_programs_are_kept_for_the_user_alone(cache):
    with compiled.programs_kept() as notice:
        assert notice is None
        compile_program()
    (folder,) = (cache / "jaxinvert" / "programs").iterdir()
    assert jax.config.jax_compilation_cache_dir == str(folder)
    assert list(folder.glob("jit*-cache"))
    for place in (cache, *folder.parents[:2], folder):
        assert place.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("damage", [lambda entry: entry[:-9], lambda entry: b"", lambda entry: bytes(len(entry))])
def test_a_damaged_program_is_compiled_again_without_a_warning(cache, damage):
    with compiled.programs_kept():
        compile_program()
    (entry,) = cache.rglob("jit__lambda-*-cache")
    whole = entry.read_bytes()
    assert compiled._complete(whole)
    entry.write_bytes(damage(whole))
    forget_settings()
    with compiled.programs_kept(), warnings.catch_warnings(action="error"):
        assert not entry.exists()
        compile_program()
    assert compiled._complete(entry.read_bytes())


@pytest.mark.parametrize("place", ["", "jaxinvert", "jaxinvert/programs"])
def test_a_folder_that_others_can_write_is_refused(cache, place):
    with compiled.programs_kept():
        pass
    (cache / place).chmod(0o777)
    forget_settings()
    with compiled.programs_kept() as notice:
        assert f"not kept: {cache / place} can be written by others; run: chmod go-w {cache / place}" in str(notice)
        assert jax.config.jax_compilation_cache_dir is None


def test_a_folder_or_program_of_another_user_is_refused(cache, monkeypatch):
    with compiled.programs_kept():
        compile_program()
    (entry,) = cache.rglob("jit__lambda-*-cache")
    entry.chmod(0o666)
    compiled.remove_damaged(entry.parent)
    assert not entry.exists()
    forget_settings()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with compiled.programs_kept() as notice:
        assert "belongs to another user" in str(notice)
        assert jax.config.jax_compilation_cache_dir is None


def test_what_the_environment_says_is_left(cache, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "chosen"))
    with compiled.programs_kept():
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "chosen")
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        with compiled.programs_kept():
            assert jax.config.jax_compilation_cache_dir is None
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
    assert not cache.exists()


def test_a_home_that_cannot_be_written_is_no_reason_to_complain(cache):
    cache.write_text("a file where the folder should be")
    with compiled.programs_kept() as notice:
        assert notice is None
        assert jax.config.jax_compilation_cache_dir is None


def test_the_least_recently_used_programs_go_first(tmp_path):
    for number, name in enumerate(["old", "used", "new"]):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (100 + number, 100))
    os.utime(tmp_path / "old", (0, 0))
    compiled.bound_size(tmp_path, 250)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "used"]


def test_every_processor_has_its_own_folder(tmp_path):
    names, processors = set(), ["flags\t: fma avx2\ncpu MHz\t: 1", "flags\t: fma", "flags\t: fma\ncpu MHz\t: 2"]
    for number, text in enumerate(processors):
        (tmp_path / str(number)).write_text(text + "\n\nprocessor\t: 1\n")
        names.add(compiled.build_name(tmp_path / str(number)))
    assert len(names) == 2
    assert all(jax.__version__ in name for name in names)


def test_only_the_command_line_changes_settings_of_jax():
    users = {path for path in PACKAGE.rglob("*.py") if "config.update(" in path.read_text(encoding="utf-8")}
    assert users == {PACKAGE / "cli" / "compiled.py"}
