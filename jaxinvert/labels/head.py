"""Access to the last dense layer (head) of a client's update, and to the model's outputs on dummy inputs."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxinvert.observation.observe import require
from jaxinvert.trees import leaves_by_path, moved, path_name
from jaxinvert.types import ApplyFn, Array, ArrayTree, LocalTraining, Observation, Params


class Head(NamedTuple):
    """The last dense layer, or its gradient: `kernel [M, K]` and `bias [K]`, or `None` without a bias."""

    kernel: Array
    bias: Array | None


class BiasedHead(NamedTuple):
    """A `Head` with a bias, for rules that need it."""

    kernel: Array
    bias: Array


def find_head(tree: ArrayTree, head: str) -> Head:
    """Reads the layer at `head`, such as `"params/head"`, from parameters or an update.

    Raises:
      ValueError: if there is no two-dimensional kernel at that path; the message lists the dense layers.
    """
    leaves = leaves_by_path(tree)
    kernel = leaves.get(f"{head}/kernel")
    if kernel is None or kernel.ndim != 2:
        dense = sorted(
            p.removesuffix("/kernel") for p, leaf in leaves.items() if p.endswith("/kernel") and leaf.ndim == 2
        )
        raise ValueError(
            f"no dense layer at {head!r}: expected {head}/kernel [features, K]; dense layers are {dense}"
        )
    return Head(kernel, leaves.get(f"{head}/bias"))


def has_head(tree: ArrayTree, head: str) -> bool:
    """Whether `find_head` would find the layer."""
    kernel = leaves_by_path(tree).get(f"{head}/kernel")
    return kernel is not None and kernel.ndim == 2


def biased_head(tree: ArrayTree, head: str, *, rule: str) -> BiasedHead:
    """`find_head` for a rule that needs the bias.

    Raises:
      ValueError: if the layer or its bias is missing.
    """
    kernel, bias = find_head(tree, head)
    if bias is None:
        raise ValueError(f"{rule} needs a bias at {head}/bias, which this model's last layer does not have")
    return BiasedHead(kernel, bias)


def step_scale(observation: Observation, *, rule: str) -> Array:
    """`1 / (learning rate * local steps)`, the factor that scales the pseudo-gradient to a mean gradient.

    FedSGD is `LocalTraining(1.0, 1)`.

    Raises:
      ValueError: if the threat model withholds `local_training`.
    """
    training: LocalTraining = require(observation, "local_training", attack=rule)
    return 1 / (jnp.asarray(training.learning_rate, jnp.float32) * training.num_steps)


class Response(NamedTuple):
    """The model's outputs on dummy inputs, averaged over the client's local steps.

    Attributes:
      probabilities: `[F, N, K]` softmax outputs `p`.
      projections: `[F, N, K]` `h W`, the features `h` projected by the probe kernel.
      products: `[F, N, K, K]` `(h W)_a p_c`.
    """

    probabilities: Array
    projections: Array
    products: Array


def respond(
    observation: Observation, dummies: Array, *, apply: ApplyFn, head: str, probe: Callable[[Array], Array], rule: str
) -> Response:
    """Evaluates the server's and the client's model on the dummies and interpolates over the local steps.

    Local step j of T uses parameters near `params - (j / T) update`, so the mean of a slowly varying quantity q over
    the steps is about `(1 - w) q(server) + w q(client)` with `w = (T - 1) / (2 T)` (Geng et al. 2021). If `num_steps`
    is the Python integer 1, the client's model is not evaluated.

    Args:
      observation: reads `params`, `update`, `local_training`.
      dummies: `[F, N, H, W, C]` in [0, 1].
      apply: the model.
      head: path of its last layer.
      probe: the server's kernel `[M, K]` -> the kernel that projects the features, `[M, K]`.
      rule: for error messages.
    """
    params = require(observation, "params", attack=rule)
    training: LocalTraining = require(observation, "local_training", attack=rule)
    probe_kernel = probe(find_head(params, head).kernel)

    def outputs(at: Params) -> Response:
        # Logits are linear in the kernel: with the probe kernel and no bias they are projections of the features.
        # The rest of the network is the same expression in both calls, so XLA compiles it once.
        swapped = _with_head(at, head, probe_kernel)

        def one_family(inputs: Array) -> tuple[Array, Array]:
            return jax.nn.softmax(apply(at, inputs)), apply(swapped, inputs)

        probabilities, projections = jax.lax.map(one_family, dummies)
        return Response(probabilities, projections, projections[..., :, None] * probabilities[..., None, :])

    server = outputs(params)
    if isinstance(training.num_steps, int) and training.num_steps == 1:
        return server
    weight = (training.num_steps - 1) / (2 * jnp.asarray(training.num_steps, jnp.float32))
    client = outputs(moved(params, observation.update))
    # With one step the weight is 0; the client's outputs, possibly not finite after a large step, must not enter.
    return jax.tree.map(lambda q, r: jnp.where(weight > 0, (1 - weight) * q + weight * r, q), server, client)


def _with_head(params: Params, head: str, kernel: Array) -> Params:
    def swap(path: tuple, leaf: Array) -> Array:
        name = path_name(path)
        return kernel if name == f"{head}/kernel" else jnp.zeros_like(leaf) if name == f"{head}/bias" else leaf

    return jax.tree_util.tree_map_with_path(swap, params)
