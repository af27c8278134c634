"""`--help` before JAX is loaded, the pages of all commands, and completion by shells."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jaxinvert.audit import evidence, verdict
from jaxinvert.cli import main
from jaxinvert.cli.audit_discrete import AuditTable, AuditText
from jaxinvert.cli.commands import COMMANDS, SECTIONS
from jaxinvert.cli.flags import flags_of, summary_of


def test_the_overview_needs_no_jax_and_names_every_command():
    """Without JAX and what needs it, the program starts in a fraction of a second; a command needs some of it."""
    code = (
        "import sys; from jaxinvert.cli import main; main(['--help']); main(['--version'])\n"
        "print([one for one in ('jax', 'flax', 'optax', 'scipy', 'matplotlib', 'pyarrow') if one in sys.modules])\n"
        "import jaxinvert.cli.audit\n"
        "print([one for one in ('flax.nnx', 'jinja2', 'matplotlib', 'pyarrow') if one in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.endswith("[]\n[]\n")
    for name in COMMANDS:
        assert f"\n  {name} " in shown
    assert sorted(name for names in SECTIONS.values() for name in names) == sorted(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("asking", ["--help", "--help-all"])
def test_a_page_fits_80_columns_and_begins_with_what_the_command_does(name, asking, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    command, kind = COMMANDS[name], COMMANDS[name].load()[0]
    assert main([*name.split(), asking]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    usage, _, first, *_ = shown.splitlines()
    assert usage.startswith(f"usage: jaxinvert {name}")
    assert command.summary == summary_of(kind)[0]
    assert command.summary.startswith(first)
    assert f"\nexample: {command.example}\n" in shown
    for flag in flags_of(kind):
        assert (flag.name.upper() if flag.positional else flag.name) in shown
        assert flag.text, f"{flag.name} is not explained"
        explained = asking == "--help-all" or flag.positional or flag.name in (command.usual or [flag.name])
        assert (" ".join(flag.text.split()[:4]) in " ".join(shown.split())) >= explained


@pytest.mark.parametrize("name", COMMANDS)
def test_ten_usual_options_come_first_and_short_commands_show_all(name, capsys):
    command, kind = COMMANDS[name], COMMANDS[name].load()[0]
    names = {flag.name for flag in flags_of(kind) if not flag.positional}
    assert set(command.usual) <= names
    assert len(command.usual or names) <= 14
    if command.usual:
        main([*name.split(), "--help"])
        shown = capsys.readouterr().out
        assert shown.index("usual options") < shown.index("other options: ")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_is_accepted(name, monkeypatch, tmp_path):
    from jaxinvert.cli.arguments import parse

    monkeypatch.chdir(tmp_path)
    words = COMMANDS[name].example.partition(" > ")[0].split()
    assert words[: 1 + len(name.split())] == ["jaxinvert", *name.split()]
    assert isinstance(parse(name, words[1 + len(name.split()) :]), COMMANDS[name].load()[0])


def test_help_of_what_is_no_command(capsys):
    assert main([]) == 2
    assert "usage: jaxinvert COMMAND" in capsys.readouterr().out
    assert main(["help", "audit", "table"]) == 0
    assert "usage: jaxinvert audit table" in capsys.readouterr().out


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("completion")
    for shell in ("bash", "zsh", "fish"):
        with pytest.MonkeyPatch.context() as patch, open(folder / shell, "w", encoding="utf-8") as file:
            patch.setattr(sys, "stdout", file)
            assert main(["completion", shell]) == 0
    return folder


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_valid(shell, scripts):
    text = (scripts / shell).read_text()
    for word in ("audit table", "restarts", "see-through-gradients", "fashion_mnist"):
        assert word in text
    if program := shutil.which(shell):
        ended = subprocess.run([program, "-n", scripts / shell], capture_output=True, text=True, check=False)
        assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_commands_options_and_names(scripts, tmp_path):
    expected = {
        "inv": ["invert"],
        "audit t": ["table", "text"],
        "audit table --ta": ["--table", "--targets"],
        "audit table --table w": ["wine"],
        "invert --attack sp": ["spear", "spectral"],
        "invert --attack = spec": ["spectral"],
        "invert --attack spectral --st": ["--steps"],
        "audit --defenses none gau": ["gaussian"],
        "audit --defenses none --lpi": ["--lpips"],
        "invert --threat-model ": ["A", "B", "C", "D", "E"],
        "invert --out r": [],  # files, by the shell's default
        "data ": ["prepare"],
        "data prepare cifar": ["cifar10", "cifar100"],
        "list att": ["attack"],
        "completion z": ["zsh"],
    }
    lines = [f"source {scripts / 'bash'}", 'show() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _jaxinvert; ']
    lines[1] += 'echo "${COMPREPLY[*]}"; }'
    for line in expected:
        words = " ".join(f'"{word}"' for word in line.split(" "))
        lines.append(f"show jaxinvert {words}")
    (tmp_path / "try").write_text("\n".join(lines))
    shown = subprocess.run(["bash", tmp_path / "try"], capture_output=True, text=True, check=True).stdout
    assert dict(zip(expected, [line.split() for line in shown.splitlines()])) == expected


def test_the_guide_says_how_to_install_it():
    guide = (Path(__file__).parents[2] / "docs" / "start.md").read_text(encoding="utf-8")
    for shell in ("bash", "zsh", "fish"):
        assert f"jaxinvert completion {shell}" in guide


def test_the_number_of_clients_that_the_audits_of_records_and_text_name_is_the_verdicts():
    """One attacker, or a naive and an adaptive one; each has two tests."""
    numbers = {8: "eight", 9: "nine"}
    one, two = (numbers[evidence.clients_needed(verdict.SIGNIFICANCE / (2 * count))] for count in (1, 2))
    assert f"With fewer than {two} ({one} for" in " ".join((AuditTable.__doc__ or "").split())
    assert f"With fewer than {one}, the verdict" in " ".join((AuditText.__doc__ or "").split())
