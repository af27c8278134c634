"""The fast convolution against `lax`: same values, all derivatives, every transformation."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxinvert.nn import compile_fast, conv_general_dilated, lowerings
from jaxinvert.nn.geometry import Geometry

NHWC = ("NHWC", "HWIO", "NHWC")
NCHW = ("NCHW", "OIHW", "NCHW")
MIXED = ("HNWC", "OHWI", "CHWN")
PLAIN = dict(strides=(1, 1), padding="SAME", lhs_dilation=None, rhs_dilation=None, layout=NHWC)
SMALL = dict(hw=(7, 6), taps=(3, 2), channels=3, features=4, batch=2)
WIDE = dict(hw=(7, 6), taps=(3, 3), channels=33, features=32, batch=3)
"""Wide 3 x 3 kernels at stride 1 take Winograd's way if the images are large, which 4 x 3 pixels are not."""


def problem(seed, *, strides, padding, lhs_dilation, rhs_dilation, layout, hw, taps, channels, features, batch):
    keys = jax.random.split(jax.random.key(seed), 2)
    sizes = {"N": batch, "H": hw[0], "W": hw[1], "C": channels}
    kernel = {"H": taps[0], "W": taps[1], "I": channels, "O": features}
    x = jax.random.normal(keys[0], [sizes[axis] for axis in layout[0]])
    scale = (channels * taps[0] * taps[1]) ** -0.5
    w = jax.random.normal(keys[1], [kernel[axis] for axis in layout[1]]) * scale

    def applied(conv):
        return lambda x, w: conv(x, w, strides, padding, lhs_dilation, rhs_dilation, layout)

    return x, w, applied(conv_general_dilated), applied(lax.conv_general_dilated)


def attack_loss(conv):
    """A grad-of-grad objective that reaches every pair of the family's members."""

    def loss(x, w):
        def inner(x, w):
            return jnp.mean(jnp.sin(conv(x, w)))

        of_x, of_w = jax.grad(inner, (0, 1))(x, w)
        return jnp.sum(of_x**2) + jnp.sum(jnp.cos(of_w)) + jnp.sum(of_w**2)

    return loss


def assert_equal(actual, expected, tolerance=1e-5):
    def compare(a, b):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        error = np.linalg.norm(np.asarray(a - b, np.float64))
        assert error <= tolerance * np.linalg.norm(np.asarray(b, np.float64)) + 1e-30

    jax.tree.map(compare, actual, expected)


@pytest.mark.parametrize(
    "case",
    [
        SMALL | PLAIN,
        SMALL | PLAIN | dict(strides=(2, 1), padding="VALID"),
        SMALL | PLAIN | dict(strides=(2, 3), padding="SAME_LOWER", layout=NCHW),
        SMALL | PLAIN | dict(padding=((2, -1), (-1, 3)), rhs_dilation=(1, 2)),
        SMALL | PLAIN | dict(padding=((1, 2), (0, 1)), lhs_dilation=(2, 1), strides=(1, 2), layout=MIXED),
        SMALL | PLAIN | dict(taps=(1, 1), strides=(2, 2)),
        SMALL | PLAIN | dict(taps=(2, 5), strides=(3, 2), padding=((1, 0), (-1, 2))),
        SMALL | PLAIN | dict(features=17, strides=(2, 1)),
        WIDE | PLAIN,
        WIDE | PLAIN | dict(hw=(4, 3), batch=1),
        WIDE | PLAIN | dict(padding=((2, -1), (0, 3)), layout=NCHW, batch=6),
    ],
    ids=lambda case: "-".join(f"{value}" for value in case.values()).replace(" ", ""),
)
def test_values_and_two_derivatives_equal_lax_under_jit_and_vmap(case):
    x, w, fast, plain = problem(0, **case)
    xs, ws = jnp.stack([x, 1.0 - 0.5 * x]), jnp.stack([w, -0.7 * w])

    @functools.partial(jax.jit, static_argnums=0)
    def everything(conv):
        second = jax.grad(attack_loss(conv), (0, 1))
        return {
            "value": conv(x, w),
            "first": jax.vjp(conv, x, w)[1](jnp.sin(conv(x, w))),
            "second": second(x, w),
            "second, x mapped": jax.vmap(second, (0, None))(xs, w),
            "second, w mapped": jax.vmap(second, (None, 0))(x, ws),
            "second, both mapped": jax.vmap(second, in_axes=(-1, 1))(jnp.moveaxis(xs, 0, -1), jnp.moveaxis(ws, 0, 1)),
        }

    assert_equal(everything(fast), everything(plain))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "names"),
    [(SMALL | PLAIN | dict(strides=(2, 1)), None), (WIDE | PLAIN, {"jvp of grad", "vmap of vmap"})],
    ids=["small", "wide"],
)
def test_forward_mode_and_other_transformations(case, names):
    """All on a small case; on a wide one, whose programs are large, an order of derivatives and an order of lanes."""
    x, w, fast, plain = problem(1, **case)
    xs, ws = jnp.stack([x, -x]), jnp.stack([w, 2.0 * w])

    @functools.partial(jax.jit, static_argnums=0)
    def everything(conv):
        loss = attack_loss(conv)
        first = jax.grad(loss, (0, 1))
        programs = {
            "jvp": lambda: jax.jvp(conv, (x, w), (jnp.cos(x), jnp.sin(w))),
            "jvp of grad": lambda: jax.jvp(first, (x, w), (jnp.cos(x), jnp.sin(w)))[1],
            "grad of jvp": lambda: jax.grad(lambda x: jnp.sum(jax.jvp(conv, (x, w), (jnp.cos(x), w))[1] ** 2))(x),
            "linearize": lambda: jax.linearize(functools.partial(first, x), w)[1](w),
            "remat": lambda: jax.grad(attack_loss(jax.checkpoint(conv)))(x, w),
            "map": lambda: lax.map(lambda both: first(*both), (xs, ws)),
            "vmap of vmap": lambda: jax.vmap(jax.vmap(first, (0, None)), (None, 0))(xs, ws),
            "jvp of vmap": lambda: jax.jvp(lambda xs: jax.vmap(first)(xs, ws), (xs,), (jnp.cos(xs),))[1],
        }
        return {name: program() for name, program in programs.items() if names is None or name in names}

    assert_equal(everything(fast), everything(plain), tolerance=2e-5)


def test_third_order_in_float64():
    with jax.enable_x64(True):
        x, w, fast, plain = problem(2, **(SMALL | PLAIN | dict(strides=(2, 2), hw=(5, 4))))
        x, w = x.astype(jnp.float64), w.astype(jnp.float64)

        @functools.partial(jax.jit, static_argnums=0)
        def third(conv):
            return jax.grad(
                lambda x, w: sum(jnp.sum(g**3) for g in jax.grad(attack_loss(conv), (0, 1))(x, w)), (0, 1)
            )(x, w)

        assert_equal(third(fast), third(plain), tolerance=1e-12)


def test_one_and_three_spatial_axes():
    for rank in (1, 3):
        x = jax.random.normal(jax.random.key(3), (2, 3, *(5, 4, 6)[:rank]))
        w = jax.random.normal(jax.random.key(4), (4, 3, *(3, 2, 3)[:rank]))

        @functools.partial(jax.jit, static_argnums=0)
        def both(conv, x=x, w=w, strides=(2, 1, 1)[:rank]):
            return jax.grad(attack_loss(lambda x, w: conv(x, w, strides, "SAME")), (0, 1))(x, w)

        assert_equal(both(conv_general_dilated), both(lax.conv_general_dilated))


def test_bfloat16_keeps_its_type_and_stays_as_close_as_lax():
    x, w, fast, plain = problem(5, **(WIDE | PLAIN))
    exact = plain(x, w)
    narrow = fast(x.astype(jnp.bfloat16), w.astype(jnp.bfloat16))
    assert narrow.dtype == jnp.bfloat16
    assert_equal(narrow.astype(jnp.float32), exact, tolerance=1e-2)


def test_shard_map_without_replication_check():
    x, w, fast, plain = problem(6, **(SMALL | PLAIN))
    mesh = jax.make_mesh((1,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    shard = functools.partial(
        jax.shard_map, mesh=mesh, in_specs=(jax.P("batch"), jax.P()), out_specs=jax.P("batch"), check_vma=False
    )
    assert_equal(jax.jit(shard(jax.grad(attack_loss(fast))))(x, w), jax.jit(jax.grad(attack_loss(plain)))(x, w))


@pytest.mark.parametrize(
    "arguments",
    [
        dict(preferred_element_type=jnp.float64, rhs=(3, 3, 4, 4)),
        dict(lhs=(0, 5, 5, 4), rhs=(3, 3, 4, 4)),
    ],
    ids=["preferred type", "empty"],
)
def test_what_the_family_cannot_express_goes_to_lax(arguments):
    x = jnp.ones(arguments.pop("lhs", (2, 5, 5, 4)))
    w = jnp.ones(arguments.pop("rhs"))

    def call(conv):
        return lambda x, w: conv(x, w, (1, 1), "SAME", dimension_numbers=NHWC, **arguments)

    with jax.enable_x64("preferred_element_type" in arguments):
        assert str(jax.make_jaxpr(call(conv_general_dilated))(x, w)) == str(
            jax.make_jaxpr(call(lax.conv_general_dilated))(x, w)
        )


def test_errors_are_those_of_lax():
    with pytest.raises(ValueError, match="feature"):
        conv_general_dilated(jnp.ones((1, 3, 5, 5)), jnp.ones((4, 2, 3, 3)), (1, 1), "SAME")
    with pytest.raises(ValueError, match="padding"):
        conv_general_dilated(jnp.ones((1, 3, 5, 5)), jnp.ones((4, 3, 3, 3)), (1, 1), 7)


@pytest.mark.parametrize("case", [SMALL | PLAIN | dict(strides=(2, 1)), WIDE | PLAIN], ids=["small", "wide"])
def test_no_grouped_convolution_is_compiled_when_restarts_are_mapped(case):
    x, w, fast, plain = problem(7, **case)
    xs = jnp.stack([x, -x, x + 1.0])

    def compiled(conv):
        return jax.jit(jax.vmap(jax.grad(attack_loss(conv)), (0, None))).lower(xs, w).compile().as_text()

    grouped = re.compile(r"(feature|batch)_group_count=(?!1\b)")
    assert grouped.search(compiled(plain))
    if jax.default_backend() == "cpu":
        assert not grouped.search(compiled(fast))


@pytest.mark.parametrize("lanes", [1, 2])
def test_what_other_backends_compile_computes_the_same(lanes):
    geometry = Geometry((9, 8), (3, 2), (5, 9), (2, 1), ((1, 1), (2, 1)), (1, 1), (1, 2), None)
    shapes = (lanes, 2, 9, 8, 3), (lanes, 3, 2, 3, 4), (lanes, 2, 5, 9, 4)
    x, w, y = (jax.random.normal(jax.random.key(8), shape) for shape in shapes)
    for member, operands in dict(convolve=(x, w), input_transpose=(y, w), kernel_gradient=(x, y)).items():
        on_cpu, elsewhere = (getattr(lowerings, f"{backend}_{member}") for backend in ("cpu", "xla"))
        assert_equal(on_cpu(*operands, geometry=geometry), elsewhere(*operands, geometry=geometry))


def test_an_attack_on_small_images_with_few_channels_compiles_no_convolution():
    x, w, fast, plain = problem(10, **SMALL | PLAIN | dict(strides=(2, 1)))

    def compiled(conv):
        return jax.jit(jax.grad(attack_loss(conv))).lower(x, w).compile().as_text()

    assert " convolution(" in compiled(plain)
    if jax.default_backend() == "cpu":
        assert " convolution(" not in compiled(fast)


def test_transposed_geometry_twice_is_the_geometry():
    geometry = Geometry((9, 8), (3, 2), (5, 9), (2, 1), ((1, 1), (2, 1)), (1, 1), (1, 2), None)
    assert geometry.transposed.transposed == geometry


def test_programs_that_compile_fast_compute_the_same_without_winograd():
    x, w, fast, _ = problem(9, **WIDE | PLAIN)

    def program():
        return jax.jit(jax.value_and_grad(attack_loss(fast))).lower(x, w).compile()

    with compile_fast():
        short = program()
    long = program()
    assert_equal(short(x, w), long(x, w), 1e-4)
    if jax.default_backend() == "cpu":
        assert short.as_text().count("\n") < 0.8 * long.as_text().count("\n")
