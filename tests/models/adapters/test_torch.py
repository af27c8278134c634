"""PyTorch modules against PyTorch itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import profile_steps
from jaxinvert import Batch, clients, labels, models
from jaxinvert.models.adapters import torch_ops
from jaxinvert.models.heads import inspected
from jaxinvert.observation.observe import observe
from tests.models.adapters import checks

torch = pytest.importorskip("torch", reason="needs pip install 'jaxinvert[torch]'")
nn = torch.nn


class Zoo(nn.Module):
    """Strided, grouped and transposed convolutions, pools, normalizations, in-place, a buffer, a tied layer."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.group = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.tied = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.tied.weight = self.group.weight
        self.up = nn.ConvTranspose2d(8, 6, 4, 2, 1)
        self.groups = nn.GroupNorm(2, 6)
        self.register_buffer("shift", torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1))
        self.layer = nn.LayerNorm(24)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(24, 4)

    def forward(self, x):
        x = torch.nn.functional.gelu(self.norm(self.first(x - self.shift)))
        x = torch.tanh(self.tied(torch.tanh(self.group(x))))
        x = nn.functional.silu(self.groups(self.up(x)), inplace=True)
        x = nn.functional.max_pool2d(x, 3, 2, 1) + nn.functional.avg_pool2d(x, 2)
        return self.head(self.drop(self.layer(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))))


class Attention(nn.Module):
    """Patches, a class token, fused attention and a transformer's encoder layer."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True, activation="gelu")
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        return self.head(self.encoder(torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1))[:, 0])


def depthwise():
    """Channels first; a depthwise, a strided grouped and a transposed convolution."""
    wide, narrow = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 4, 3, stride=2, padding=1, groups=2)
    layers = [nn.Conv2d(3, 8, 3, padding=1), wide, nn.Sigmoid(), narrow, nn.ConvTranspose2d(4, 4, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * 36, 4))


def dense():
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.ReLU(), nn.Linear(6, 4))


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def theirs(module, train=False):
    """PyTorch's gradient by name, a random direction by name, and the derivative of their product in the images."""
    module.eval()
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.train(train)
    images = torch.tensor(checks.IMAGES.transpose(0, 3, 1, 2).copy(), requires_grad=True)
    named = dict(module.named_parameters())
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        loss = nn.functional.cross_entropy(module(images), torch.tensor(checks.LABELS))
        grads = torch.autograd.grad(loss, named.values(), create_graph=True)
        direction = [torch.randn_like(value) for value in named.values()]
        inner = sum((a * b).sum() for a, b in zip(grads, direction))
        (second,) = torch.autograd.grad(inner, images)
    by_name = {name: value.detach().numpy() for name, value in zip(named, grads)}
    return by_name, dict(zip(named, (v.numpy() for v in direction))), second.numpy().transpose(0, 2, 3, 1)


def test_no_slow_convolution_is_compiled_into_an_attack_step():
    model = models.from_torch(depthwise(), input_shape=(8, 8, 3))
    client = clients.fedsgd(model.loss)

    def distance(params, images):
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(client(params, Batch(images, jnp.array([1])))))

    params, images = model.init(jax.random.key(0)), jnp.ones((1, 8, 8, 3))
    text = jax.jit(jax.grad(distance, 1)).lower(params, images).compile().as_text()
    assert " convolution(" in text or " dot(" in text
    if jax.default_backend() == "cpu":
        assert profile_steps.slow_convolutions(text) == []


@pytest.mark.slow
@pytest.mark.parametrize(("make", "train"), [(Zoo, False), (Zoo, True), (Attention, False), (dense, False)])
def test_gradients_of_both_orders_are_pytorch_s(make, train):
    module = make()
    model = models.from_torch(module, input_shape=(8, 8, 3), batch_norm="train" if train else "eval")
    expected, direction, second = theirs(module, train)
    assert checks.relative_error(checks.gradient(model), expected) < 1e-5
    found = checks.second_derivative(model, direction)
    assert np.linalg.norm(found - second) < 1e-5 * np.linalg.norm(second)
    if not train:
        checks.check_examples_are_apart(model)
    checks.check_round_trip(model)


def test_files_are_state_dicts_and_memory_is_ours():
    module = Zoo()
    model = models.from_torch(module, input_shape=(8, 8, 3))
    state = module.state_dict()
    params = model.init(jax.random.key(0))
    named = models.to_named(model, params)
    assert list(named) == list(state)
    for name, value in state.items():
        np.testing.assert_array_equal(named[name], value.numpy())
    assert params["params"]["first"]["kernel"].shape == (3, 3, 3, 8)
    assert params["params"]["head"]["kernel"].shape == (24, 4)
    assert set(params) == {"params", "batch_stats", "buffers"}
    assert model.head == "params/head"
    assert module.training  # its mode is as before


@pytest.mark.slow
def test_buffers_travel_untrained_and_statistics_can_be_read():
    module = Zoo()
    model = models.from_torch(module, input_shape=(8, 8, 3), batch_norm="train")
    update = checks.gradient(model)
    assert not any(update[name].any() for name, _ in module.named_buffers())
    seen = model.batch_statistics(model.init(jax.random.key(0)), jnp.asarray(checks.IMAGES))
    x = module.first(torch.tensor(checks.IMAGES.transpose(0, 3, 1, 2).copy()) - module.shift)
    np.testing.assert_allclose(seen["norm"]["mean"], x.mean((0, 2, 3)).detach(), atol=1e-6)
    np.testing.assert_allclose(seen["norm"]["var"], x.var((0, 2, 3), correction=0).detach(), rtol=1e-4)
    slope = jax.grad(lambda x: model.batch_statistics(model.init(None), x)["norm"]["var"].sum())
    assert jnp.abs(slope(jnp.asarray(checks.IMAGES))).sum() > 0


def test_convolutions_are_the_fast_ones():
    model = models.from_torch(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 4)), input_shape=(8, 8, 3)
    )
    text = str(jax.make_jaxpr(model.apply)(model.init(None), jnp.asarray(checks.IMAGES)))
    assert "convolve" in text


def test_a_dense_layer_on_pixels_gives_the_image_in_its_own_order():
    """`dW / db` of one row is the image in our order (h, w, c), which closed forms read."""
    model = models.from_torch(dense(), input_shape=(8, 8, 3))
    batch = Batch(jnp.asarray(checks.IMAGES[:1]), jnp.asarray(checks.LABELS[:1]))
    layer = clients.fedsgd(model.loss)(model.init(None), batch)["params"]["1"]
    unit = int(jnp.argmax(jnp.abs(layer["bias"])))
    found = layer["kernel"][:, unit] / layer["bias"][unit]
    np.testing.assert_allclose(found.reshape(8, 8, 3), checks.IMAGES[0], atol=1e-4)


def test_layers_without_gradient_are_frozen():
    module = dense()
    module[1].requires_grad_(False)
    model = models.from_torch(module, input_shape=(8, 8, 3))
    assert model.frozen == ("params/1/kernel", "params/1/bias")
    update = checks.gradient(model)
    assert not update["1.weight"].any()
    assert update["3.weight"].any()


class TransposedHead(nn.Module):
    """Logits by a weight in each layout: `[K, D]` and `[D, K]`, of a dense layer or a parameter alone."""

    def __init__(self, how):
        super().__init__()
        self.how, self.first = how, nn.Linear(192, 6)
        self.head = (
            nn.Linear(6, 4) if how == "layer" else nn.Linear(4, 6, bias=False) if how == "layer.T" else nn.Module()
        )
        if how in ("[K, D]", "[D, K]"):
            self.head.kernel = nn.Parameter(torch.randn(*((4, 6) if how == "[K, D]" else (6, 4))))
            self.head.shift = nn.Parameter(torch.randn(4))

    def forward(self, x):
        x = torch.sigmoid(self.first(x.flatten(1)))
        if self.how == "layer.T":
            return x @ self.head.weight
        return x @ (self.head.kernel.T if self.how == "[K, D]" else self.head.kernel) + self.head.shift


@pytest.mark.slow
@pytest.mark.parametrize("how", ["layer.T", "[K, D]", "[D, K]"])
def test_a_head_in_any_layout_is_found_and_read(how):
    module = TransposedHead(how)
    model = inspected(models.from_torch(module, input_shape=(8, 8, 3)))
    assert model.head == "params/head"
    named = models.to_named(model, model.init(None))
    assert list(named) == list(module.state_dict())
    for name, value in module.state_dict().items():
        np.testing.assert_array_equal(named[name], value)
    checks.check_round_trip(model)
    expected, _, _ = theirs(module)
    assert checks.relative_error(checks.gradient(model), expected) < 1e-5
    params, rows = model.init(None), jnp.asarray(checks.IMAGES[:1])
    assert params["params"]["head"]["kernel"].shape == (6, 4)
    problem = labels.LabelProblem(model.apply, model.head, (8, 8, 3), jax.random.key(0), model.calibration)
    for label in range(4):
        seen = observe(clients.fedsgd(model.loss), params, Batch(rows, jnp.array([label])))
        for name in ("idlg", "llg") if how == "layer.T" else ("idlg", "moments", "ilrg"):  # without and with a bias
            assert int(jnp.argmax(labels.rule_for(name, problem)(seen))) == label


@pytest.mark.parametrize("part", ["weight", "bias", "both"])
def test_label_rules_refuse_a_frozen_head(part):
    """As it is imported, and as `import_model` looks for its head."""
    module = dense()
    for name, value in module[3].named_parameters():
        value.requires_grad_(part not in (name, "both"))
    model = models.from_torch(module, input_shape=(8, 8, 3))
    for one in (model, inspected(model)):
        problem = labels.LabelProblem(one.apply, one.head, (8, 8, 3), jax.random.key(0), one.calibration)
        with pytest.raises(ValueError, match="frozen"):
            labels.rule_for("idlg", problem)


def test_dropout_is_off_or_drawn():
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 64), nn.Dropout(0.5), nn.Linear(64, 4))
    quiet = models.from_torch(module, input_shape=(8, 8, 3))
    drawn = models.from_torch(module, input_shape=(8, 8, 3), dropout="train")
    params, batch = quiet.init(None), Batch(jnp.asarray(checks.IMAGES), jnp.asarray(checks.LABELS))
    assert quiet.drawn_loss_fn is None
    assert float(drawn.loss(params, batch)) == pytest.approx(float(quiet.loss(params, batch)))
    losses = [float(drawn.drawn_loss_fn(params, batch, jax.random.key(i))) for i in range(2)]
    assert losses[0] != losses[1]


class Resizing(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.options = options

    def forward(self, x):
        return nn.functional.interpolate(x, **self.options).flatten(1)


class Rounding(nn.Module):
    """Also a buffer that is not in the state_dict."""

    def __init__(self):
        super().__init__()
        self.register_buffer("places", torch.tensor([0.3, 1.0, 2.0, 3.0]), persistent=False)
        self.register_buffer("sent", torch.ones(4))
        self.layer = nn.Linear(192, 4)

    def forward(self, x):
        return self.sent * torch.round(self.layer(x.flatten(1)), decimals=1) + self.places


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "corners"])
@pytest.mark.parametrize("how", [{"scale_factor": 1.3}, {"scale_factor": (2.0, 0.7)}, {"size": (5, 11)}])
def test_resizing_is_pytorch_s(mode, how):
    options = {"mode": "bilinear", "align_corners": True} if mode == "corners" else {"mode": mode}
    module = Resizing(**how, **options)
    model = models.from_torch(module, input_shape=(8, 7, 3))
    images = np.random.default_rng(2).normal(size=(2, 8, 7, 3)).astype(np.float32)
    expected = module(torch.tensor(images.transpose(0, 3, 1, 2).copy()))
    np.testing.assert_allclose(model.apply(model.init(None), images), expected, atol=1e-4)


def test_buffers_outside_of_the_state_dict_and_decimals():
    module = Rounding()
    model = models.from_torch(module, input_shape=(8, 8, 3))
    params = model.init(None)
    assert set(models.to_named(model, params)) == {"sent", "layer.weight", "layer.bias"}
    expected = module(torch.tensor(checks.IMAGES.transpose(0, 3, 1, 2).copy()))
    np.testing.assert_allclose(model.apply(params, checks.IMAGES), expected.detach(), atol=1e-5)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_an_operation_that_is_run_otherwise_is_found_at_import(monkeypatch, mode):
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(144, 4))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    models.from_torch(module, input_shape=(8, 8, 3), batch_norm=mode)
    for name, value in module.state_dict().items():
        np.testing.assert_array_equal(value, before[name])
    monkeypatch.setitem(torch_ops.OPERATIONS, "tanh", lambda x: jnp.tanh(1.05 * x))
    with pytest.raises(
        ValueError, match=r"Sequential has other logits in JAX than in PyTorch, by 0\.\d+ of the largest"
    ):
        models.from_torch(module, input_shape=(8, 8, 3), batch_norm=mode)


def test_dropout_of_everything_has_finite_gradients():
    module = nn.Sequential(nn.Flatten(), nn.Dropout(1.0), nn.Linear(192, 4))
    model = models.from_torch(module, input_shape=(8, 8, 3), dropout="train")
    params, batch = model.init(None), Batch(jnp.asarray(checks.IMAGES), jnp.asarray(checks.LABELS))

    def of_images(images):
        update = clients.fedsgd(model.drawn_loss_fn, dropout_key=jax.random.key(0))(
            params, batch._replace(inputs=images)
        )
        return update["params"]["2"]["kernel"].sum()

    value, slope = jax.value_and_grad(of_images)(batch.inputs)
    assert value == 0
    assert not slope.any()


def test_what_cannot_be_imported_is_named():
    class Strange(nn.Module):
        def forward(self, x):
            return torch.linalg.svdvals(x.flatten(1)[:, :16].reshape(-1, 4, 4))

    class Branching(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :4] if x.sum() > 0 else x.flatten(1)[:, 4:8]

    with pytest.raises(ValueError, match="Strange uses PyTorch's aten"):
        models.from_torch(Strange(), input_shape=(8, 8, 3))
    with pytest.raises(ValueError, match="cannot export Branching as a graph"):
        models.from_torch(Branching(), input_shape=(8, 8, 3))
    with pytest.raises(ValueError, match="unknown batch_norm 'Eval'"):
        models.from_torch(dense(), input_shape=(8, 8, 3), batch_norm="Eval")
