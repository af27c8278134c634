"""A tiny client shared by the tests: small shapes, one compilation."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest

from jaxinvert import clients, models, nn
from jaxinvert.attacks import Problem, initial_guess
from jaxinvert.nn import lowerings
from jaxinvert.observation.observe import observe, observe_targets
from jaxinvert.types import ApplyFn, Array, Batch, ClientUpdateFn, Key, Observation, Params

SHAPE = (1, 6, 6, 1)
NUM_PICTURES = initial_guess.regressed.__kwdefaults__["num_pictures"]
NUM_CLASSES = 3


class Victim(NamedTuple):
    """A client with one private example, and what the server sees of it."""

    model: models.Model
    client_update: ClientUpdateFn
    params: Params
    batch: Batch
    observation: Observation

    @property
    def problem(self) -> Problem:
        """What an attack on it is built for."""
        return Problem(self.client_update, self.model, len(self.batch.inputs))


def apply(params: Params, inputs: Array) -> Array:
    """A smooth two-layer network written without any library: the contract is the function."""
    hidden = jnp.tanh(inputs.reshape(inputs.shape[0], -1) @ params["first"]["kernel"] + params["first"]["bias"][None])
    return hidden @ params["head"]["kernel"] + params["head"]["bias"][None]


def init(key: Key) -> Params:
    keys = jax.random.split(key)
    return {
        "batch_stats": {},
        "first": {"kernel": jax.random.normal(keys[0], (36, 16)) / 6, "bias": jnp.zeros(16)},
        "head": {"kernel": jax.random.normal(keys[1], (16, NUM_CLASSES)) / 4, "bias": jnp.zeros(NUM_CLASSES)},
    }


def model_of(
    apply: ApplyFn,
    init: Callable[[Key], Params],
    *,
    input_shape: tuple[int, int, int] = SHAPE[1:],
    num_classes: int = NUM_CLASSES,
    head: str = "head",
) -> models.Model:
    """A model of two functions, whose inputs are pixels, not normalized."""
    return models.Model(
        name="tiny",
        input_shape=input_shape,
        num_classes=num_classes,
        head=head,
        init=init,
        apply=apply,
        mean=(0.0,) * input_shape[-1],
        std=(1.0,) * input_shape[-1],
        batch_statistics=lambda params, inputs: {},
    )


@pytest.fixture(scope="session", autouse=True)
def small_programs():
    """First guesses from 32 pictures instead of 1,024, and wide convolutions that compile faster than they run.

    Either takes seconds in every test that needs an attack for something else. Tests of guesses say how many pictures
    they need; `tests/nn` tests convolutions as users have them.
    """
    with pytest.MonkeyPatch.context() as patch, nn.compile_fast():
        patch.setitem(initial_guess.regressed.__kwdefaults__, "num_pictures", 32)
        yield


@pytest.fixture
def as_users_compile(monkeypatch):
    """Undoes `small_programs`."""
    monkeypatch.setitem(initial_guess.regressed.__kwdefaults__, "num_pictures", NUM_PICTURES)
    before = lowerings._COMPILE_FAST.set(False)
    yield
    lowerings._COMPILE_FAST.reset(before)


@pytest.fixture(scope="session")
def victim() -> Victim:
    model = model_of(apply, init)
    params = init(jax.random.key(0))
    client_update = clients.fedsgd(models.cross_entropy(apply))
    batch = Batch(jax.random.uniform(jax.random.key(2), SHAPE), jnp.array([1]))
    return Victim(model, client_update, params, batch, observe(client_update, params, batch))


@pytest.fixture(scope="session")
def victims(victim: Victim) -> tuple[Batch, Observation]:
    """Three clients at once: batches and observations with a leading axis `T`."""
    batches = Batch(jax.random.uniform(jax.random.key(9), (3, *SHAPE)), jnp.array([[0], [1], [2]]))
    return batches, observe_targets(victim.client_update, victim.params, batches)
