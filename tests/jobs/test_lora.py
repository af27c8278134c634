"""Jobs whose clients train adapters only: fields, names, checkpoints without adapters, later rounds."""

import jax
import numpy as np
import pytest

from jaxinvert import jobs, models
from jaxinvert.models.checkpoints import save_checkpoint
from jaxinvert.trees import leaves_by_path

FIELDS = {"model": "vit-plain-4-16-1", "size": 8, "targets": 1, "steps": 1, "restarts": 1}


def moved(task):
    update = leaves_by_path(jax.tree.map(lambda leaf: leaf[0], task.observations.update))
    return {path.rpartition("/")[2] for path, leaf in update.items() if np.any(np.asarray(leaf) != 0)}


@pytest.mark.slow
def test_only_adapters_are_sent_on_a_checkpoint_of_the_network(tmp_path):
    job = jobs.JobConfig.of(**FIELDS, lora_rank=2)
    assert jobs.job_name(job) != jobs.job_name(jobs.JobConfig.of(**FIELDS))
    task = jobs.prepare(job)
    assert moved(task) == {"lora_b"}
    assert "only adapters of rank 2 are trained, of query, value" in jobs.assumptions(job, task.model)["client"]
    plain = models.create("vit-plain-4-16-1", input_shape=(8, 8, 3))
    params = plain.init(jax.random.key(7))
    save_checkpoint(tmp_path / "net.safetensors", params, {})
    trained = jobs.prepare(job.replace(checkpoint=tmp_path / "net.safetensors"))
    np.testing.assert_array_equal(
        trained.observations.params["params"]["head"]["kernel"], params["params"]["head"]["kernel"]
    )
    assert moved(trained) == {"lora_b"}


def test_both_factors_move_in_a_second_round():
    job = jobs.JobConfig.of(**FIELDS, lora_rank=2, rounds=2, server_lr=1.0, attack="inverting-gradients")
    assert moved(jobs.prepare(job)) == {"lora_a", "lora_b"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lora_layers": ("key",)}, "which only lora_rank uses"),
        ({"lora_rank": 0}, "lora_rank is 0"),
    ],
)
def test_impossible_adapters_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        jobs.JobConfig.of(**FIELDS, **fields)
