"""What newcomers type wrongly: one line, escaped, that names the nearest remedy."""

import itertools
import shlex
from typing import get_args, get_origin

import pytest

from jaxinvert import cli
from jaxinvert.cli.commands import COMMANDS
from jaxinvert.cli.flags import flags_of

FILES = {"bad.yaml": "model: mlp-8\natack: dlg", "typed.yaml": "frozen: head", "grid.yaml": "steps: many"}


@pytest.mark.parametrize(
    ("line", "remedy"),
    [
        # commands
        ("attack", "unknown command 'attack'; there are invert, rank"),
        ("inverse", "did you mean invert?"),
        ("Invert", "did you mean invert?"),
        ("table audit", "did you mean audit table?"),
        ("prepare cifar10", "did you mean data prepare"),
        ("--model lenet invert", "the command comes before options such as --model: jaxinvert invert ..."),
        ("data", "jaxinvert data prepare"),
        ("audit tabel", "there is no file tabel; did you mean jaxinvert audit table?"),
        # options
        ("invert --atack spectral", "unknown option '--atack'; did you mean --attack (name of the attack"),
        ("invert --learning-rate 0.1", "did you mean --lr (learning rate of the attack's optimizer"),
        ("invert --learning_rate=0.1", "did you mean --lr (learning rate"),
        ("invert --batch_size 4", "did you mean --num-examples"),
        ("invert --epochs 3", "did you mean --local-epochs"),
        ("invert --dataset mnist", "did you mean --data "),
        ("invert -n 4", "did you mean --num-examples"),
        ("invert -steps 4", "has two dashes: --steps"),
        ("invert --law x", "--law is now --distribution"),
        ("invert --defenses gaussian", "did you mean --defense "),
        ("invert --gpu", "JAX uses the accelerator that it finds"),
        ("invert --config x.yaml", "only audits and sweeps read a file"),
        ("invert --verbose", "progress is always shown"),
        ("invert --lpips", "invert has none, but audit has"),
        ("invert --group 0.1", "--attack see-through-gradients --settings group X"),
        ("invert --scale 0.1", "it is a setting of the defense gaussian"),
        ("invert --zzz", "`jaxinvert invert --help-all` explains all options"),
        ("tokens --vocab 100", "did you mean --vocabulary"),
        ("sweep bad.yaml --steps 10", "it is a field of the sweep's file: steps: VALUE"),
        # values
        ("invert --attack", "--attack has no value, expected --attack NAME"),
        ("invert --attack Spectral", "did you mean spectral?"),
        ("invert --steps 1e3", "--steps is '1e3', expected a whole number"),
        ("invert --tv x", "--tv is 'x', expected a number"),
        ("invert --steps 10 20", "'20' after --steps belongs to no option: --steps takes one value"),
        ("invert --adaptive yes", "--adaptive takes no value"),
        ("invert --adaptive=true", "give --adaptive or --no-adaptive"),
        ("invert --no-steps", "only options without a value can be negated"),
        ("invert --threat-model c", "expected A, B, C, D or E; did you mean C?"),
        ("invert --client fedprox", "--client is 'fedprox', expected fedsgd or fedavg"),
        ("invert --settings tv=0.1", "expected pairs of a name and a number, such as tv 0.01"),
        ("invert --settings tv x", "--settings is 'x', expected a number"),
        ("audit --input-shape 3 32", "expected --input-shape N N N"),
        ("invert --defense gaussian:scale=0.1", "settings are given by --defense-settings"),
        ("invert --defense topk", "did you mean top-k?"),
        ("invert --labels restored --label-rule momets", "did you mean moments?"),
        # words without an option
        ("invert cifar10", "did you mean --data cifar10?"),
        ("invert spectral", "did you mean --attack spectral?"),
        ("list spectral", "its kind comes first: jaxinvert list attack spectral"),
        ("sweep", "sweep needs FILE: YAML file"),
        ("completion powershell", "shell is 'powershell', expected bash, zsh or fish"),
        # files
        ("audit bad.yaml", "bad.yaml: there is no field 'atack'; did you mean attack?"),
        ("sweep bad.yaml", "there is no field 'atack'; did you mean attack?"),
        ("audit typed.yaml", "frozen is 'head', expected a list of text"),
        ("audit grid.yaml", "steps is 'many', expected a whole number"),
        ("invert --out bad.yaml/x", "bad.yaml is not a folder"),
        # what a terminal would obey
        ("'in\nvert\x1b[2J'", r"unknown command 'in\nvert\x1b[2J'"),
        ("invert '--a\nb\x1b[2J'", r"unknown option '--a\nb\x1b[2J'"),
        ("invert --steps '1\n2'", r"--steps is '1\n2', expected a whole number"),
        ("report 'a\nb\x9b'", r"a\nb\x9b holds no sweep"),
        ("audit 'a\nb'", r"a\nb is not a file"),
        ("invert --data 'a\nb'", r"no dataset 'a\nb'"),
    ],
)
def test_it_is_one_line_that_names_the_remedy(line, remedy, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    assert cli.main(shlex.split(line)) == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert shown[:-1].isprintable()
    assert remedy in shown
    assert {path.name for path in tmp_path.iterdir()} == set(FILES)


def test_what_only_the_parser_refuses_is_one_line_too(capsys, monkeypatch):
    monkeypatch.setattr("jaxinvert.cli.arguments._check", lambda *_: None)
    assert cli.main(["invert", "--stepps", "1\x1b[2J"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ")
    assert "--stepps" in shown
    assert shown[:-1].isprintable()


def float_options():
    """Every option of a command that takes a number that need not be whole, with what makes it possible."""
    needs = {
        "defense_settings": ["--defense", "gaussian"],
        "local_lr": ["--client", "fedavg"],
        "local_weight_decay": ["--client", "fedavg"],
        "local_momentum": ["--client", "fedavg", "--local-optimizer", "momentum"],
        "mean": ["--update", "a", "--params", "b", "--std", "1"],
        "std": ["--update", "a", "--params", "b", "--mean", "0"],
        "server_lr": ["--rounds", "2"],
    }
    pairs = {"settings": "tv", "defense_settings": "scale"}
    for name in ("audit", "audit table", "sweep"):
        for flag in flags_of(COMMANDS[name].load()[0]):
            if float in (flag.kind, *get_args(flag.kind)):
                field = flag.name.replace("-", "_")
                words = [*name.split(), *(["s.yaml"] if name == "sweep" else []), *needs.get(field, [])]
                pair = [pairs[field]] if get_origin(flag.kind) is dict else []
                yield [*words, f"--{flag.name}", *pair], pairs.get(field, field)


@pytest.mark.parametrize(
    ("words", "named"), list(float_options()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_no_number_is_infinite_or_none(words, named, tmp_path, capsys, monkeypatch):
    """Also where it is not used, such as `delta` without an epsilon, or `cpus` without Ray."""
    monkeypatch.chdir(tmp_path)
    for value in ("nan", "inf", "-inf"):
        assert cli.main([*words, value]) == 2
        shown = capsys.readouterr().err
        assert f"{named} is " in shown
        assert value in shown
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    "words",
    [
        ["sweep", "x.yaml", "--cpus", "-1"],
        ["sweep", "x.yaml", "--cpus", "0"],
        ["sweep", "x.yaml", "--gpus", "-1"],
        ["audit", "--delta", "0"],
        ["audit", "--delta", "1"],
        ["audit", "--sampling-rate", "1.5"],
        ["audit", "--training-steps", "0"],
        ["audit", "--update", "a", "--params", "b", "--mean", "0", "--std", "0"],
    ],
)
def test_numbers_out_of_range_are_refused_also_where_nothing_uses_them(words, capsys):
    assert cli.main(words) == 2
    assert f"{words[-2].removeprefix('--').replace('-', '_')} is " in capsys.readouterr().err


def test_every_option_is_known_in_both_spellings():
    from jaxinvert.cli.arguments import _check

    for name, value in itertools.product(("invert", "audit table"), ("-", "_")):
        flags = flags_of(COMMANDS[name].load()[0])
        for flag in flags:
            if not flag.positional and flag.is_switch:
                _check(name, flags, [f"--{flag.name.replace('-', value)}"])
                _check(name, flags, [f"--no{value}{flag.name.replace('-', value)}"])
