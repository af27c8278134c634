"""What is trained and sent: read off or declared, by clients, objectives, captures, and the user's own tree."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen
from safetensors.numpy import save_file

from jaxinvert import Batch, attacks, audit, clients, data, jobs, labels, models
from jaxinvert.attacks import matching, objectives
from jaxinvert.audit.captured import explained
from jaxinvert.audit.reading import observe_capture
from jaxinvert.models.heads import inspected
from jaxinvert.models.roles import sent_leaves, trained_leaves
from jaxinvert.observation import captures
from jaxinvert.trees import leaves_by_path
from jaxinvert.types import Observation

SHAPE = (4, 4, 3)
BATCH = Batch(jax.random.uniform(jax.random.key(1), (2, *SHAPE)), jnp.array([0, 2]))


def mlp():
    return models.mlp(input_shape=SHAPE, num_classes=3, features=(24, 24))


def with_table():
    """A network with an integer table, a float buffer and running statistics among its variables."""

    def init(key):
        net = {"kernel": jax.random.normal(key, (48, 3)), "bias": jnp.zeros(3)}
        others = {"index": jnp.arange(48)[::-1], "shift": jnp.ones(3)}
        return {"params": {"head": net}, "buffers": others, "batch_stats": {"norm": {"mean": jnp.zeros(3)}}}

    def apply(params, inputs):
        x = (inputs.reshape(len(inputs), -1))[:, params["buffers"]["index"]]
        head, shift = params["params"]["head"], params["buffers"]["shift"] + params["batch_stats"]["norm"]["mean"]
        return x @ head["kernel"] + (head["bias"] + shift)[None]

    return models.from_functions(init, apply, name="table", input_shape=SHAPE, num_classes=3)


def test_collections_and_integers_are_read_off():
    params = with_table().init(jax.random.key(0))
    trained = {path for path, is_trained in leaves_by_path(trained_leaves(params)).items() if is_trained}
    assert trained == {"params/head/kernel", "params/head/bias"}
    pairs = [(jnp.ones((2, 3)), jnp.arange(3))]  # a tree without collections
    assert jax.tree.leaves(trained_leaves(pairs)) == [True, False]
    sent = leaves_by_path(sent_leaves(params, personal=("params/head/bias",)))
    assert [path for path, is_sent in sent.items() if is_sent] == ["params/head/kernel"]


@pytest.mark.parametrize(
    "optimizer", [None, optax.sgd(0.1), optax.chain(optax.add_decayed_weights(0.1), optax.adam(0.1))]
)
def test_integers_and_buffers_travel_untrained(optimizer):
    model = with_table()
    params = model.init(jax.random.key(0))
    make = clients.fedsgd if optimizer is None else clients.fedavg
    options = {} if optimizer is None else {"optimizer": optimizer, "batch_size": 1}
    update = jax.jit(make(model.loss, **options))(params, BATCH)
    assert jax.tree.structure(update) == jax.tree.structure(params)
    assert not any(leaf.any() for leaf in jax.tree.leaves((update["buffers"], update["batch_stats"])))
    assert update["params"]["head"]["kernel"].any()
    assert update["buffers"]["index"].dtype == jnp.float32


def test_frozen_layers_are_not_trained_and_personal_ones_not_sent():
    model = models.with_personal(models.with_frozen(mlp(), ["dense_0"]), ["params/head"])
    assert model.frozen == ("params/dense_0/bias", "params/dense_0/kernel")
    params = model.init(jax.random.key(0))
    gradient = clients.fedsgd(model.loss)(params, BATCH)["params"]
    assert not gradient["dense_0"]["kernel"].any()
    assert gradient["head"]["kernel"].any()
    for fields in ({}, {"client": "fedavg", "local_batch_size": 1, "local_weight_decay": 0.1, "num_examples": 2}):
        deployment = jobs.deployment_of(jobs.JobConfig.of(**fields), model)
        update = deployment.simulated_update()(params, BATCH)["params"]
        assert not any(leaf.any() for layer in ("dense_0", "head") for leaf in update[layer].values())
        assert update["dense_1"]["kernel"].any()


def test_a_layer_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"has no layer 'conv'; it has dense_0/bias, dense_0/kernel, dense_1/bias"):
        models.with_frozen(mlp(), ["conv"])
    with pytest.raises(ValueError, match=r"every layer of model .* is frozen"):
        models.with_frozen(mlp(), ["params"])


def test_a_network_without_collections_has_layers_that_are_frozen():
    def init(key):
        return {"conv": jnp.ones((12, 3)), "dense": jnp.ones((3, 4))}

    def apply(params, inputs):
        return inputs.reshape(len(inputs), -1) @ params["conv"] @ params["dense"]

    model = models.from_functions(init, apply, name="pair", input_shape=(2, 2, 3), num_classes=4)
    first = next(path for path in leaves_by_path(init(None)) if "conv" in path)
    assert models.with_frozen(model, [first]).frozen == (first,)
    with pytest.raises(ValueError, match="nothing is trained"):
        models.with_frozen(model, list(leaves_by_path(jax.eval_shape(model.init, jax.random.key(0)))))


def test_only_what_was_sent_is_matched():
    """Zeros for frozen layers are not taken for their gradient: the truth still matches exactly."""
    model = mlp()
    params, client = model.init(jax.random.key(0)), clients.fedsgd(model.loss)
    update = client(params, BATCH)
    part = {"params": {**update["params"], "dense_0": jax.tree.map(jnp.zeros_like, update["params"]["dense_0"])}}
    for objective in (objectives.cosine, objectives.squared_l2, objectives.l1, objectives.tensor_norms):
        distance = matching.update_distance(client, objective)
        assert float(distance(Observation(params, part), BATCH)) < 1e-6
        other = BATCH._replace(inputs=1 - BATCH.inputs)
        assert float(distance(Observation(params, part), other)) > 1e-3
    assert float(objectives.cosine(update, part)) > 1e-3  # what zeros cost when they are compared


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pseudo-gradient", "delta", "weights"])
def test_a_partial_file_is_read_and_explained_wholly(tmp_path, kind):
    """Cases 15 (a) and (b): a file of the trained tensors alone, and zeros for the others."""
    model = models.mlp(input_shape=(32, 32, 3), num_classes=10, features=(5, 6))
    photos = data.load("photos", split="test[:1]")
    params = model.init(jax.random.key(0))
    update = leaves_by_path(clients.fedsgd(model.loss)(params, photos.batch()))
    before = {path: np.asarray(leaf) for path, leaf in leaves_by_path(params).items()}
    trained = [path for path in update if "dense_0" not in path]
    sent = {path: np.asarray(update[path]) for path in trained}
    if kind != "pseudo-gradient":
        sent = {path: (-leaf if kind == "delta" else before[path] - leaf) for path, leaf in sent.items()}
    save_file(before, tmp_path / "params.safetensors")
    save_file(sent, tmp_path / "part.safetensors")
    zeros = {path: sent.get(path, np.zeros_like(leaf)) for path, leaf in before.items()}
    save_file(zeros, tmp_path / "zeros.safetensors")
    for name in ("part", "zeros"):
        capture = audit.Capture(tmp_path / "params.safetensors", (tmp_path / f"{name}.safetensors",), kind)
        config, capture = audit.job_of_capture(jobs.JobConfig.of(attack="spectral"), capture)
        seen = observe_capture(config, capture, model)
        assert not seen.update["params"]["dense_0"]["kernel"].any()
        share = explained(jobs.Program(config, model), seen, photos.images[None], photos.labels[None])
        assert share[0] == pytest.approx(1, abs=1e-4)


def test_weights_of_what_is_not_trained_are_no_update():
    model = with_table()
    params = model.init(jax.random.key(0))
    moved = jax.tree.map(lambda leaf: leaf + 1, params)
    update = captures.as_update(moved, params, kind="weights")
    assert not any(leaf.any() for leaf in jax.tree.leaves((update["buffers"], update["batch_stats"])))
    np.testing.assert_allclose(update["params"]["head"]["kernel"], -1, rtol=1e-5)


def rule(name, model):
    problem = labels.LabelProblem(model.apply, model.head, SHAPE, jax.random.key(1), model.calibration)
    return labels.rule_for(name, problem)


@pytest.mark.parametrize("layer", ["params/head", "head", "params/head/bias", "params/head/kernel"])
@pytest.mark.parametrize("kind", ["frozen", "personal"])
def test_label_rules_refuse_a_head_that_updates_do_not_hold(kind, layer):
    change = models.with_frozen if kind == "frozen" else models.with_personal
    model = change(mlp(), [layer])
    for name in labels.REGISTRY:
        with pytest.raises(ValueError, match=rf"{name}.*do not hold the gradient of params/head/\w+: it is {kind}"):
            rule(name, model)
    rule("idlg", change(mlp(), ["dense_0"]))
    net = models.from_linen(Deep(), name="deep", input_shape=SHAPE, num_classes=3, head="")
    if not layer.endswith("kernel") or kind == "personal":  # known before the head is looked for, and after
        declared = inspected(change(net, [layer]))
        with pytest.raises(ValueError, match=kind):
            rule("moments", declared)
    with pytest.raises(ValueError, match=f"it is {kind}"):
        rule("moments", change(inspected(net), [layer]))


class Deep(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.relu(linen.Dense(5, name="first")(x.reshape(len(x), -1)))
        return linen.Dense(3, name="head")(x)


def test_a_job_and_an_attack_refuse_to_restore_labels_from_such_a_head():
    config = jobs.JobConfig.of(model="mlp-4", personal=("params/head",), labels="restored", label_rule="idlg")
    task = jobs.prepare(config)
    with pytest.raises(ValueError, match="gradient of params/head/kernel: it is personal"):
        task.program.restore_labels(jax.random.key(0), task.observations)
    with pytest.raises(ValueError, match=r"'idlg' reads .* it is personal"):
        attacks.idlg(attacks.Problem(clients.fedsgd(mlp().loss), task.program.model, 1))


def test_a_captured_update_without_the_head_is_refused_by_label_rules(tmp_path):
    model = mlp()
    params = model.init(jax.random.key(0))
    update = leaves_by_path(clients.fedsgd(model.loss)(params, BATCH))
    save_file(
        {path: np.asarray(leaf) for path, leaf in leaves_by_path(params).items()}, tmp_path / "params.safetensors"
    )
    for lacking in ("head", "head/bias"):
        sent = {path: np.asarray(leaf) for path, leaf in update.items() if f"params/{lacking}" not in path}
        save_file(sent, tmp_path / "part.safetensors")
        capture = audit.Capture(tmp_path / "params.safetensors", (tmp_path / "part.safetensors",), "pseudo-gradient")
        asked = jobs.JobConfig.of(labels="restored", num_examples=2)
        config, capture = audit.job_of_capture(asked, capture)
        with pytest.raises(
            ValueError, match=r"'moments' reads .* params/head/\w+: it is zero, or was not sent: grant"
        ):
            observe_capture(config, capture, model)
