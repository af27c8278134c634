"""The realism card: which facts of a job favor the attacker, and when a job counts as deployed."""

import pytest

from jaxinvert import data, jobs, models

DEPLOYED = jobs.JobConfig.of(
    model="mlp-16",
    client="fedavg",
    num_examples=4,
    local_batch_size=2,
    local_order="unknown",
    labels="restored",
    checkpoint="trained.safetensors",
)


def card(config, model="mlp-16", **options):
    network = models.create(model, input_shape=(8, 8, 3), num_classes=4)
    found = jobs.realism(config, network, **options)
    return found.kind, {fact.name: fact.favors for fact in found.facts}


def test_a_client_without_any_easy_assumption_is_as_deployed():
    kind, favors = card(DEPLOYED)
    assert kind == "as deployed"
    assert set(favors.values()) == {"neither"}


@pytest.mark.parametrize(
    ("changed", "fact"),
    [
        ({"num_examples": 1, "local_batch_size": 1}, "examples per update"),
        ({"local_order": "known"}, "training"),
        ({"checkpoint": None}, "parameters"),
        ({"labels": "known"}, "labels"),
        ({"rounds": 2}, "rounds"),
        ({"attack": "gias", "settings": {}}, "prior"),
    ],
)
def test_every_easy_assumption_makes_a_diagnostic_upper_bound(changed, fact):
    kind, favors = card(DEPLOYED.replace(**changed))
    assert kind == "diagnostic upper bound"
    assert [name for name, side in favors.items() if side == "attacker"] == [fact]


def test_the_mode_of_batch_norm_is_a_fact_only_of_networks_that_have_it():
    assert "BatchNorm" not in card(DEPLOYED)[1]
    kind, favors = card(DEPLOYED, model="resnet8-1")
    assert (kind, favors["BatchNorm"]) == ("diagnostic upper bound", "attacker")


def test_captured_updates_are_of_a_deployment():
    config = jobs.JobConfig.of(model="mlp-16", labels="restored", num_examples=2)
    assert card(config)[0] == "diagnostic upper bound"
    assert card(config, captured=True)[0] == "as deployed"


@pytest.mark.parametrize(
    ("changed", "fact"),
    [
        ({"num_examples": 1}, "examples per update"),
        ({"model": "resnet8-1"}, "BatchNorm"),
        ({"attack": "gias"}, "prior"),
    ],
)
def test_facts_of_captured_clients_favor_nobody(changed, fact):
    config = jobs.JobConfig.of(**{"model": "mlp-16", "labels": "restored", "num_examples": 2} | changed)
    assert card(config, config.model.name)[1][fact] == "attacker"
    kind, favors = card(config, config.model.name, captured=True)
    assert kind == "as deployed"
    assert favors.get(fact, "neither") == "neither"


def test_a_captured_client_is_nobody_whose_images_are_known():
    """Neither the generator nor the public images are of the scenes of captured clients, whose images are unknown."""
    config = jobs.JobConfig.of(model="mlp-16", attack="gias", threat_model="D", split="train")
    network = models.create("mlp-16", input_shape=(32, 32, 3), num_classes=4)
    simulated, captured = (jobs.assumptions(config, network, captured=one)["known"] for one in (False, True))
    assert any("scenes" in fact for fact in simulated)
    assert not any("scenes" in fact or "public images" in fact for fact in captured)
    assert any("generator" in fact for fact in captured)


def test_a_naive_attacker_favors_the_client():
    config = DEPLOYED.replace(defense="gaussian")
    assert card(config)[1]["defense"] == "client"


def test_words_name_the_facts_that_favor_someone():
    config = jobs.JobConfig.of(model="mlp-16")
    said = jobs.assumptions(config, models.create("mlp-16", input_shape=(8, 8, 3), num_classes=4))
    words = jobs.realism_in_words(said)
    assert words.startswith("diagnostic upper bound; favoring the attacker: examples per update 1, training")


def test_private_and_public_tiles_are_of_different_photographs():
    private, public, both = (data.load("photos", split=split) for split in ("private", "public", "train"))
    assert not set(private.labels) & set(public.labels)
    assert len(private.images) + len(public.images) == len(both.images)
    sliced = data.load("photos", split="private[3:5]")
    assert (sliced.images == private.images[3:5]).all()
    with pytest.raises(ValueError, match="'private' at 32 px only"):
        data.load("photos", split="private", size=224)


def test_public_images_of_the_attacker_are_of_other_photographs_than_private_tiles():
    config = jobs.JobConfig.of(split="private[:4]")
    assert config.data.holds_private_tiles
    assert not jobs.JobConfig.of(split="private+test").data.holds_private_tiles
    assert jobs.JobConfig.of(split="public[:3]").data.holds_training
    assert not jobs.JobConfig.of(split="test").data.holds_training
