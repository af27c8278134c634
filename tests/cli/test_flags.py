"""Flags against files: what is said on the command line counts, in every spelling, and also if it is a default."""

import pytest
import tyro

from jaxinvert import jobs
from jaxinvert.cli.audit import Audit
from jaxinvert.cli.audit_discrete import AuditTable, AuditText
from jaxinvert.cli.captured import with_round
from jaxinvert.cli.fields import said, with_file


def parsed(kind, line):
    return tyro.cli(kind, args=line.split()[2:], config=(tyro.conf.OmitArgPrefixes,))


@pytest.mark.parametrize("flag", ["--targets 9", "--targets=9"])
@pytest.mark.parametrize("kind", [Audit, AuditTable, AuditText])
def test_a_flag_comes_before_the_file_even_with_the_value_of_the_default(kind, flag, tmp_path):
    file = tmp_path / "f.yaml"
    file.write_text("targets: 2\ncandidates: 7\n")
    line = f"jaxinvert audit {file} {flag}"
    command = with_file(parsed(kind, line), line)
    assert (jobs.flatten(command)["targets"], command.candidates) == (9, 7)
    without = with_file(parsed(kind, f"jaxinvert audit {file}"), f"jaxinvert audit {file}")
    assert jobs.flatten(without)["targets"] == 2


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("--num_examples 1", "num_examples", 1),
        ("--num-examples=1", "num_examples", 1),
        ("--no-attack-free", "attack_free", False),
        ("--attack_free", "attack_free", True),
        ("--settings tv 0", "settings", {"tv": 0.0}),
        ("--model mlp-8", "model", "mlp-8"),
        ("--input-shape 8 8 3", "input_shape", (8, 8, 3)),
    ],
)
def test_every_spelling_of_a_flag_is_noticed(line, field, value):
    line = f"jaxinvert audit {line}"
    assert said(parsed(Audit, line), line) == {field: value}


def test_flags_that_are_only_possible_with_the_file_are_possible(tmp_path):
    file = tmp_path / "f.yaml"
    file.write_text("client: fedavg\nnum_examples: 2\nsettings: {group: 0.5}\n")
    line = f"jaxinvert audit {file} --local-lr 0.5 --attack inverting-gradients --settings tv 1"
    command = with_round(parsed(Audit, line), line)
    assert command.client.local_lr == 0.5
    assert command.attacker.settings == {"tv": 1.0}
    line = f"jaxinvert audit {file} --client fedsgd --local-lr 0.5"
    with pytest.raises(ValueError, match=r"f.yaml: local_lr is 0.5, which only client='fedavg' uses"):
        with_round(parsed(Audit, line), line)
