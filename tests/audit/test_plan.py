"""What an audit asks for, and what is promised beside what was reached."""

import numpy as np
import pytest

from jaxinvert import audit, jobs
from jaxinvert.defenses import accounting

CONFIG = jobs.JobConfig.of(model="mlp", steps=3)


def test_every_defense_is_met_by_a_naive_and_an_adaptive_attacker():
    none, sparse, chained = audit.settings_for(CONFIG, ["none", "top-k:keep=0.2", "clip+gaussian:norm=2,scale=0.1"])
    assert (none.name, [*none.attackers]) == ("no defense", ["naive"])
    assert (sparse.name, [*sparse.attackers]) == ("top-k (keep 0.2)", ["naive", "adaptive"])
    assert sparse.attackers["adaptive"].attacker.adaptive
    assert sparse.attackers["adaptive"].defense.settings == {"keep": 0.2}
    assert chained.attackers["naive"].defense.name == "clip+gaussian"
    assert chained.attackers["naive"].defense.parameters == {"clip.norm": 2, "gaussian.scale": 0.1}


@pytest.mark.parametrize(
    ("fields", "defense", "why"),
    [
        ({"num_examples": 2}, "mixup", "no adaptive attacker is known"),
        ({"aggregate": 2}, "top-k", "no adaptive attacker is known for the mean of 2"),
        ({"attack": "dlg"}, "top-k", "does not adapt to defenses"),
        ({"threat_model": "B", "labels": "restored", "label_rule": "bias-sign"}, "top-k", "threat model withholds"),
    ],
)
def test_where_nobody_adapts_the_setting_says_why(fields, defense, why):
    config = jobs.JobConfig.of(model="mlp", **fields)
    (setting,) = audit.settings_for(config, [defense])
    assert [*setting.attackers] == ["naive"]
    assert why in setting.note


@pytest.mark.parametrize(
    ("defenses", "message"),
    [
        ([], "at least one"),
        (["none", "none"], "only once"),
        (["top-k:keep"], "not of the form"),
        (["top-k:keep=much"], "not of the form"),
        (["top-k:keep=0.1,keep=0.2"], "twice"),
        (["top-k:scale=1"], "'scale' of 'top-k' is unknown"),
        (["blur"], "unknown defense 'blur'"),
    ],
)
def test_defenses_that_cannot_be_are_refused(defenses, message):
    with pytest.raises(ValueError, match=message):
        audit.settings_for(CONFIG, defenses)
    with pytest.raises(ValueError, match="takes its defenses from the list"):
        audit.settings_for(jobs.JobConfig.of(defense="sign"), ["none"])


@pytest.mark.parametrize("multiplier", [0.05, 0.5, 5.0])
def test_what_is_allowed_is_never_less_than_what_is_shown(multiplier):
    """An attack that wins as often as is allowed on average shows an epsilon below the accountant's."""
    config = jobs.JobConfig.of(model="mlp", defense="dp-sgd", defense_settings={"norm": 1, "multiplier": multiplier})
    release = accounting.success_bound(sampling_rate=1, noise_multiplier=multiplier, num_steps=1, baseline=0.01)
    trials = {"naive": audit.Trials(int(1000 * release), 1000, 0.01), "adaptive": audit.Trials(8, 1000, 0.01)}
    found = audit.allowed(config, trials, audit.Training(0.01, 100, 1e-5))
    assert found.attacker == "naive"
    assert found.release == release
    assert 0.01 <= found.training <= 1
    assert 0 <= found.shown <= min(found.epsilon, np.log(100))
    if multiplier < 5:
        assert found.shown > 0.5


def test_what_is_allowed_is_said_of_dp_sgd_alone():
    trials = {"naive": audit.Trials(9, 9, 0.01)}
    assert audit.allowed(jobs.JobConfig.of(defense="gaussian"), trials, None) is None
    private = jobs.JobConfig.of(defense="dp-sgd")
    assert audit.allowed(private, {"naive": audit.Trials(0, 0, 1.0)}, None) is None
    alone = audit.allowed(private, trials, None)
    assert alone.training is None
    assert alone.shown == pytest.approx(np.log((0.05 ** (1 / 9) - 1e-5) / 0.01))  # nine of nine: p >= 0.05^(1/9)


def test_an_epsilon_is_the_accountants_or_there_is_none():
    private = jobs.JobConfig.of(defense="dp-sgd+top-k", defense_settings={"norm": 1, "multiplier": 1.1})
    promised = audit.privacy(private, audit.Training(0.01, 1000, 1e-5))
    assert promised is not None
    assert promised.epsilon == pytest.approx(1.515, abs=2e-3)  # of the accountant's documentation
    assert "Poisson" in promised.words
    without = audit.privacy(private, None)
    assert without is not None
    assert without.epsilon is None
    noise = audit.privacy(jobs.JobConfig.of(defense="gaussian"), audit.Training(0.01, 1000, 1e-5))
    assert noise is not None
    assert noise.epsilon is None
    assert "not differentially private" in noise.words
    assert audit.privacy(jobs.JobConfig(), audit.Training(0.01, 1000, 1e-5)) is None
