"""Attacks and label rules give what they gave before the package was re-housed (commit 49650b9).

`before_rehousing.json` was recorded by that commit. Attacks were recorded anew later: spectral matching and See
through Gradients, whose distances round differently since they leave out what was not sent (losses differ from the
first record by 5e-6 of themselves at most), and GIAS, whose shipped generator has been trained on other images.
Spectral matching was recorded twice more, since it compiles the client's probe once, and since it may fit contrast at
the end, which it does not here (the same losses, bit for bit). All three were recorded once more since small
convolutions are matrix products on a CPU (the same losses, but for 1e-5 of themselves at most in spectral matching).
Unmixed features were recorded anew since their components run until they stay (the same losses, but for 1e-7).
Four were recorded anew for the compiler flags that tests have now; with those of before, all were equal bit for bit.
On the same kind of machine and version of jaxlib results are equal bit for bit; elsewhere, where compilers round
differently, attack losses agree after a few steps.
"""

import hashlib
import importlib.metadata
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinvert import Batch, clients, data, jobs, labels, models, observe
from jaxinvert.observation import threat_models

pytestmark = [pytest.mark.usefixtures("as_users_compile"), pytest.mark.slow]
RECORDED = json.loads((Path(__file__).parent / "before_rehousing.json").read_text())


def machine() -> str:
    """What decides how a compiler rounds: the processor, its number of cores, and the version of the compiler."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    told = sorted({line for line in lines if line.startswith(("model name", "flags"))})
    facts = [importlib.metadata.version("jaxlib"), str(os.cpu_count()), *told]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]


def digest(tree) -> str:
    content = hashlib.sha256()
    for leaf in map(np.asarray, jax.tree.leaves(tree)):
        content.update(f"{leaf.shape} {leaf.dtype}".encode() + leaf.tobytes())
    return content.hexdigest()[:16]


@pytest.mark.parametrize("name", RECORDED["attacks"])
def test_attack(name):
    before = RECORDED["attacks"][name]
    config = jobs.JobConfig.of(**{**RECORDED["small"], "attack": name, **before["job"]})
    task = jobs.prepare(config)
    found = jobs.execute(config, task.program, task.observations).reconstructions
    if machine() == RECORDED["machine"]:
        assert digest((found.inputs, found.attack_loss)) == before["digest"]
    else:
        np.testing.assert_allclose(found.attack_loss, before["attack_loss"], rtol=0.02, atol=1e-5)


def test_label_rules():
    photos = data.load("photos", split="test[:6]")
    model = models.create("small-convnet8", like=photos)
    seen = observe(
        clients.fedsgd(model.loss),
        model.init(jax.random.key(0)),
        Batch(jnp.asarray(photos.images), jnp.array([0, 0, 0, 3, 3, 7])),
        threat_model=threat_models.LADDER["D"],
        surrogate=jnp.asarray(data.load("photos", split="train[:64]").images),
    )
    problem = labels.LabelProblem(model.apply, model.head, model.input_shape, jax.random.key(3))
    rules = {name: labels.REGISTRY[name] for name in RECORDED["label_rules"]}
    counts = {name: jax.jit(rule.factory(problem))(seen).tolist() for name, rule in rules.items()}
    assert counts == RECORDED["label_rules"]
