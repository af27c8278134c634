"""A network named as `module:function`: what may be returned, and what is wrong in words."""

import random
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinvert import Batch, cli, jobs, models

NETWORKS = """
    import random, jax, jax.numpy as jnp, numpy as np
    from flax import linen, nnx
    from jaxinvert import models

    class Net(linen.Module):
        num_classes: int = 4
        @linen.compact
        def __call__(self, x):
            return linen.Dense(self.num_classes)(x.reshape(x.shape[0], -1))

    def module(): return Net()
    def sized(num_classes): return Net(num_classes)
    def normalizing(mean, std): return Net()
    def init(key): return {"w": jax.random.normal(key, (12, 4))}
    def apply(params, inputs): return inputs.reshape(inputs.shape[0], -1) @ params["w"]
    def loss(params, batch): return jnp.sum(params["w"]) * jnp.mean(batch.inputs)
    def pair(): return init, apply
    def drawn():
        kernel = np.random.normal(size=(12, 4)) * random.random()
        return lambda key: {"w": jnp.asarray(kernel)}, apply
    def pair_and_loss(): return init, apply, loss
    def net_and_half():
        net = Net()
        def loss(params, batch):
            return 0.5 * models.cross_entropy(net.apply)(params, batch)
        return net, loss

    def module_and_loss(): return Net(), lambda params, batch: jnp.float32(7)
    class Normalized(Net):
        batch_norm: str = "train"
        @linen.compact
        def __call__(self, x):
            return super().__call__(linen.BatchNorm(self.batch_norm == "eval")(x))

    def normalized(): return Normalized(10)
    def moded(batch_norm="eval"): return Normalized(10, batch_norm)
    def model(width=3): return models.mlp(input_shape=(2, 2, 3), num_classes=4, mean=(0.5,) * 3, features=(width,))
    def two_heads(): return linen.Sequential([lambda x: x.reshape(x.shape[0], -1), linen.Dense(4), linen.Dense(4)])

    def bad_logits(): return init, lambda params, inputs: inputs
    def bad_apply(): return init, lambda params, inputs: inputs @ params["v"]
    def bad_init(): return lambda: 1, apply
    def bad_loss(): return init, apply, lambda params, batch: batch.inputs
    def bad_result(): return Net
    def bad_pair(): return Net(), 3
    def fails(): raise RuntimeError("out of luck")
    def exits(): import sys; sys.exit(3)
    not_a_function = 1
    network, whole = Net(), model()
    nnx_network = nnx.Linear(12, 4, rngs=nnx.Rngs(0))
"""
SHAPE = (2, 2, 3)
INPUTS = jnp.linspace(0, 1, 24).reshape(2, *SHAPE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("work")
    for name, text in {
        "my_networks": NETWORKS,
        "my_broken": "import my_networks\nimport my_absent",
        "my_typo": "def f(:",
        "my_script": "raise SystemExit(1)",
        "my_package/__init__": "",
        "my_package/nets": "from my_networks import pair",
    }.items():
        (where / f"{name}.py").parent.mkdir(exist_ok=True)
        (where / f"{name}.py").write_text(textwrap.dedent(text))
    return where


@pytest.fixture(autouse=True)
def in_the_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in [name for name in sys.modules if name.startswith("my_")]:
        del sys.modules[name]


def make(function, **options):
    return models.import_model(f"my_networks:{function}", **options)


def test_a_module_gets_normalized_pixels():
    found = make("module", input_shape=SHAPE, mean=(0.5,) * 3, std=(0.25,) * 3)
    assert (found.num_classes, found.head, found.input_shape) == (4, "params/Dense_0", SHAPE)
    params = found.init(jax.random.key(0))
    dense = params["params"]["Dense_0"]
    expected = ((INPUTS - 0.5) / 0.25).reshape(2, -1) @ dense["kernel"] + dense["bias"][None]
    np.testing.assert_allclose(found.apply(params, INPUTS), expected, rtol=1e-5, atol=1e-6)


def test_a_function_that_names_the_normalization_gets_pixels():
    found = make("normalizing", input_shape=SHAPE, mean=(0.5,) * 3, std=(0.25,) * 3)
    plain = make("module", input_shape=SHAPE)
    params = plain.init(jax.random.key(0))
    np.testing.assert_array_equal(found.apply(params, INPUTS), plain.apply(params, INPUTS))


def test_a_network_that_draws_its_own_parameters_is_the_same_whenever_it_is_made():
    """PyTorch and Keras draw them from generators of the process, which are left as they were."""
    random.seed(5)
    before = random.getstate(), np.random.get_state()[1].copy()
    first, again = (make("drawn", input_shape=SHAPE).init(jax.random.key(0)) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert random.getstate() == before[0]
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])


def test_a_pair_of_functions_and_running_statistics():
    found = make("pair", input_shape=SHAPE, num_classes=4, mean=(0.5,) * 3, std=(0.5,) * 3)
    params = found.init(jax.random.key(0))
    kernel = params["head"]["kernel"]  # the head is found, and spelled as one; files keep its name
    np.testing.assert_array_equal(models.to_named(found, params)["w"], kernel)
    expected = (INPUTS * 2 - 1).reshape(2, -1) @ kernel
    np.testing.assert_allclose(found.apply(params, INPUTS), expected, rtol=1e-5, atol=1e-6)
    assert (found.head, found.batch_statistics(params, INPUTS)) == ("head", {})

    shifted = models.from_functions(
        lambda key: {"batch_stats": {"shift": jnp.ones(())}, "w": jnp.ones((12, 4))},
        lambda params, inputs: inputs.reshape(2, -1) @ params["w"] + params["batch_stats"]["shift"],
        name="shifted",
        input_shape=SHAPE,
        num_classes=4,
    )
    params = shifted.init(jax.random.key(0))
    gradient = jax.grad(lambda params: shifted.apply(params, INPUTS).sum())(params)
    assert float(gradient["batch_stats"]["shift"]) == 0
    assert float(jnp.abs(gradient["w"]).min()) > 0
    with pytest.raises(ValueError, match="use a Flax module"):
        shifted.batch_statistics(params, INPUTS)


def test_a_model_keeps_its_own_facts():
    found = make("model", mean=(0.1,) * 3)
    assert (found.input_shape, found.num_classes, found.mean, found.head) == (SHAPE, 4, (0.5,) * 3, "params/head")
    assert make("model", head="params/other").head == "params/other"


def test_options_reach_the_function():
    assert make("sized", input_shape=SHAPE, num_classes=7).num_classes == 7
    kernel = jax.eval_shape(make("model", width=5).init, jax.random.key(0))["params"]["head"]["kernel"]
    assert kernel.shape == (5, 4)


def test_losses():
    params, batch = {"head": {"kernel": jnp.ones((12, 4))}}, Batch(INPUTS, jnp.array([0, 3]))
    own = make("pair_and_loss", input_shape=SHAPE).loss
    assert float(own(params, batch)) == pytest.approx(48 * 0.5)
    shifted = make("pair_and_loss", input_shape=SHAPE, mean=(0.25,) * 3, std=(0.5,) * 3).loss
    assert float(shifted(params, batch)) == pytest.approx(48 * 0.5)  # (0.5 - 0.25) / 0.5, as the network takes it
    brighter = batch._replace(inputs=INPUTS + 0.25)
    assert float(shifted(params, brighter)) == pytest.approx(48 * 1.0)
    usual = make("pair", input_shape=SHAPE).loss
    assert float(usual(params, batch)) == pytest.approx(np.log(4))  # equal logits
    assert float(make("module_and_loss", input_shape=SHAPE).loss({"params": {}}, batch)) == 7


def test_an_own_loss_is_calibrated_whatever_the_normalization():
    found = make("net_and_half", input_shape=SHAPE, mean=(0.4,) * 3, std=(0.2,) * 3)
    assert found.calibration.refusal == ""
    assert found.calibration.factor == pytest.approx(0.5, rel=1e-3)


def test_clients_minimize_the_loss_that_was_brought():
    model = make("pair_and_loss", input_shape=SHAPE)
    client_update = jobs.deployment_of(jobs.JobConfig(), model).simulated_update()
    update = client_update({"head": {"kernel": jnp.ones((12, 4))}}, Batch(INPUTS, jnp.array([0, 3])))
    np.testing.assert_allclose(update["head"]["kernel"], 0.5, rtol=1e-6)  # d/dw sum(w) mean(x)


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        ("modul", {}, "unknown function of my_networks: 'modul'.*did you mean 'module'"),
        ("not_a_function", {}, "is of the type int, not a function that returns a jaxinvert.models.Model, a network"),
        (
            "network",
            {"input_shape": SHAPE},
            r"is a network \(Flax module\), not a function .*`def make\(\): return network`",
        ),
        ("nnx_network", {"input_shape": SHAPE}, r"is a network \(Flax NNX module\), not a function"),
        ("whole", {"input_shape": SHAPE}, r"is a network \(jaxinvert.models.Model\), not a function"),
        ("module", {}, "needs input_shape: its result has none"),
        ("sized", {"input_shape": SHAPE}, "needs num_classes, which is not given"),
        ("module", {"depth": 3}, "unknown option of model 'my_networks:module': 'depth'"),
        ("module", {"input_shape": (2, 2)}, "input_shape must be three positive sizes"),
        (
            "module",
            {"input_shape": SHAPE, "num_classes": 9},
            "the data has 9 classes .*, but the network of model my_networks:module has 4 outputs: give other data",
        ),
        ("model", {"num_classes": 9}, "the data has 9 classes .* has 4 outputs"),
        ("model", {"input_shape": (3, 3, 3)}, r"takes inputs \(2, 2, 3\), expected \(3, 3, 3\)"),
        ("bad_logits", {"input_shape": SHAPE}, r"logits .* are float32 \(3, 2, 2, 3\), expected floats"),
        ("bad_apply", {"input_shape": SHAPE}, r"failed on 3 inputs .*KeyError: 'v' \(.*my_networks\.py, line \d+\)"),
        (
            "bad_init",
            {"input_shape": SHAPE},
            r"parameters .* cannot be initialized for inputs \(H, W, C\) = \(2, 2, 3\), as --data .*: TypeError",
        ),
        ("bad_loss", {"input_shape": SHAPE}, r"loss .* is float32 \(3, 2, 2, 3\), expected one float"),
        ("bad_result", {}, "returned a .*, expected a jaxinvert.models.Model"),
        ("bad_pair", {}, "returned a tuple of Net, int, expected"),
        ("fails", {}, r"failed when called with nothing: RuntimeError: out of luck \(.*my_networks\.py, line"),
        ("exits", {}, "SystemExit: 3"),
    ],
)
def test_what_is_wrong_is_named(function, options, message):
    with pytest.raises(ValueError, match=message):
        make(function, **options)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_network:module", "unknown module .*'my_network'; known: .*did you mean 'my_networks'"),
        ("my_package.net:pair", "unknown module .*'my_package.net'"),
        ("my_broken:f", "importing my_broken failed: ModuleNotFoundError: No module named 'my_absent'.*my_broken.py"),
        ("my_typo:f", "importing my_typo failed: SyntaxError"),
        ("my_script:f", "importing my_script failed: SystemExit"),
        ("my_networks:", r"not of the form module:function; did you mean my_networks:FUNCTION\?"),
        ("my_networks.py:module", r"not of the form module:function; did you mean my_networks:module\?"),
        (":f", "not of the form module:function"),
        ("/etc/net.py:f", "not of the form module:function"),
    ],
)
def test_a_module_that_is_not_there_or_fails(name, message):
    with pytest.raises(ValueError, match=message):
        models.import_model(name)


@pytest.mark.parametrize(
    ("name", "likely"),
    [
        ("my_broken", "my_broken:FUNCTION"),
        ("my_broken.py", "my_broken:FUNCTION"),
        ("./my_broken.py", "my_broken:FUNCTION"),
        ("my_package", "my_package:FUNCTION"),
        ("my_package/nets.py", "my_package.nets:FUNCTION"),
        ("my_package.nets", "my_package.nets:FUNCTION"),
        ("my_package.nets.pair", "my_package.nets:pair"),
    ],
)
def test_a_module_without_a_function_is_recognized_and_not_imported(name, likely):
    with pytest.raises(ValueError, match=f"unknown model .*; did you mean '{likely}', a function in a module"):
        models.create(name)
    assert not [loaded for loaded in sys.modules if loaded.startswith("my_")]


def test_a_network_with_as_many_inputs_as_another_set_of_data_has_says_what_sets_them():
    with pytest.raises(ValueError, match=r"failed on 3 inputs \(H, W, C\) = \(2, 2, 1\), as --data"):
        make("pair", input_shape=(2, 2, 1))


def test_the_head_is_the_layer_whose_outputs_are_the_logits():
    assert make("two_heads", input_shape=SHAPE).head == "params/layers_2"
    with pytest.raises(ValueError, match=r"not the outputs of a dense layer 'params/layers_1'; .*: params/layers_2"):
        make("two_heads", input_shape=SHAPE, head="params/layers_1")


def test_the_source_is_part_of_a_job_s_name(folder):
    assert models.source_of("my_package.nets:pair") == folder / "my_package" / "nets.py"
    with pytest.raises(ValueError, match="unknown module"):
        models.source_of("my_absent:f")
    config = jobs.JobConfig.of(model="my_package.nets:pair")
    before = jobs.job_name(config)
    with open(folder / "my_package" / "nets.py", "a") as file:
        file.write("# changed\n")
    assert jobs.job_name(config) != before


def test_the_mode_of_batch_norm_is_what_the_job_says():
    with pytest.raises(ValueError, match="BatchNorm layer 'BatchNorm_0' is in train mode"):
        jobs.set_up(jobs.JobConfig.of(model="my_networks:normalized"))
    jobs.set_up(jobs.JobConfig.of(model="my_networks:moded"))
    with pytest.raises(ValueError, match="unknown option of model 'my_networks:normalized': 'batch_norm'"):
        jobs.set_up(jobs.JobConfig.of(model="my_networks:normalized", batch_norm="train"))
    jobs.set_up(jobs.JobConfig.of(model="my_networks:moded", batch_norm="train"))


def test_jobs_take_such_a_name(capsys):
    task = jobs.prepare(jobs.JobConfig.of(model="my_networks:sized", targets=1, size=11))
    assert task.model.name == "my_networks:sized"
    assert task.observations.update["params"]["Dense_0"]["kernel"].shape == (1, 11 * 11 * 3, 10)
    assert cli.main(["invert", "--model", "my_networks:none", "--size", "11"]) == 2
    assert "unknown function of my_networks: 'none'" in capsys.readouterr().err
