"""Types shared by all modules: data as NamedTuples, interfaces between modules as callables.

Axis letters in all docstrings: `T` targets, `R` restarts, `S` local steps, `B` examples, then `H W C`; `K` classes.
Everything is written for one target and one restart; only `search` and `sweeps` add axes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array
Key = jax.Array
ArrayTree = Any
"""Any pytree of arrays."""
Params = ArrayTree
"""The model's variables that the server sends to its clients, trained or not."""
Update = ArrayTree
"""The pseudo-gradient `params - local_params` that a client sends to the server, same tree as `Params`."""


Scalar = float | Array
"""A hyperparameter: a Python float or a traced scalar."""


class Batch(NamedTuple):
    """A client's private examples.

    Attributes:
      inputs: `[B, H, W, C]` (or `[B, ...]`) floats; pixels in [0, 1].
      labels: `[B]` integer classes, or `[B, K]` soft labels.
    """

    inputs: Array
    labels: Array


class LocalTraining(NamedTuple):
    """A client's local training, as known to the server.

    Attributes:
      learning_rate: of the client's optimizer; 1 for FedSGD, whose update is the gradient itself.
      num_steps: number of local optimizer steps `S` per update.
    """

    learning_rate: Scalar
    num_steps: Scalar


class Observation(NamedTuple):
    """Everything the server sees of one client; the only data that an attack may read.

    A field that the threat model withholds is `None`; `require` raises an error if it is read.

    Attributes:
      params: the model's parameters, as sent to the client.
      update: the observed pseudo-gradient, same tree as `params`; its entries for running statistics are zero.
      labels: `[B]` integer labels, if the attacker knows them.
      num_examples: the number of private examples `B`, if the attacker knows it.
      local_training: learning rate and number of steps of the client, if the attacker knows them.
      batch_stats: the running statistics sent with the update, same tree as `params["batch_stats"]`, if the client
        sends them.
      surrogate: `[N, H, W, C]` public images of the same kind as the private ones, if the attacker has any.
      defense: the parameters of the client's defense, by name; empty without a defense.
      earlier_params: the model's parameters in `N` earlier rounds in which the client trained on the same examples,
        a tree like `params` with leaves `[N, ...]`.
      earlier_updates: the client's updates in these rounds, a tree like `update` with leaves `[N, ...]`.
    """

    params: Params | None
    update: Update
    labels: Array | None = None
    num_examples: int | None = None
    local_training: LocalTraining | None = None
    batch_stats: ArrayTree | None = None
    surrogate: Array | None = None
    defense: Mapping[str, Scalar] | None = None
    earlier_params: Params | None = None
    earlier_updates: Update | None = None


SHARED_FIELDS = ("params", "num_examples", "local_training", "surrogate", "defense", "earlier_params")
"""Fields of an observation that all targets share; with many targets, all other fields have a leading axis `T`."""


class Reconstruction(NamedTuple):
    """An attack's estimate of the private batch.

    Attributes:
      inputs: `[B, H, W, C]` in [0, 1]; the best iterate by attack loss, never chosen by the truth.
      labels: labels that the attack used or recovered, `[B]` or soft `[B, K]`, or `None`.
      attack_loss: `[]` the loss of `inputs` as the attacker computes it (before clipping, if the attack may leave
        [0, 1]); lower is better.
      info: further quantities that the attacker can compute, such as the loss history `[num_steps + 1]`.
    """

    inputs: Array
    labels: Array | None
    attack_loss: Array
    info: Mapping[str, Array]


LossFn = Callable[[Params, Batch], Array]
"""The client's training loss `(params, batch) -> []`, for any model."""
ApplyFn = Callable[[Params, Array], Array]
"""`(params, inputs [B, H, W, C] in [0, 1]) -> logits [B, K]`; includes the normalization of its inputs."""
ClientUpdateFn = Callable[[Params, Batch], Update]
"""The update that a client computes; differentiable in the batch's inputs."""
Objective = Callable[[Update, Update], Array]
"""`(simulated, observed) -> []`: distance between two updates."""
Regularizer = Callable[[Array], Array]
"""`inputs [B, H, W, C] -> []`: image prior, lower is more plausible."""
Defense = Callable[[Any, Update], Update]
"""`(key, update) -> update`, applied by a client before sending; the key may be `None` if nothing is random."""
RecoverLabels = Callable[[Observation], Array]
"""`observation -> counts [K]`: the number of private examples of each class."""
SolveFn = Callable[[Key, Observation], Reconstruction]
"""A complete attack: a closed form, or an iterative attack with its loop."""
Shape = Sequence[int]
PerChannel = float | Sequence[float]
"""A normalization constant: one value for all channels, or `[C]` values."""


def no_penalty(variables: ArrayTree) -> Array:
    """Returns zero: all variables are equally likely."""
    del variables
    return jnp.zeros(())


class Parametrization(NamedTuple):
    """The variables of an attack and their decoding to images.

    Attributes:
      init: `key -> variables`, a random start.
      decode: `variables -> inputs [B, H, W, C]` in [0, 1] on the feasible set. If more than the images is variable:
        `variables -> Batch` with inputs and soft labels `[B, K]`, or another NamedTuple that begins like it.
      project: `variables -> variables`, projection onto the feasible set.
      penalty: `variables -> []`, a prior on the variables that is added to the attack loss.
      free: whether every value of the variables is feasible and `project` is the identity.
    """

    init: Callable[[Key], ArrayTree]
    decode: Callable[[ArrayTree], Any]
    project: Callable[[ArrayTree], ArrayTree]
    penalty: Callable[[ArrayTree], Array] = no_penalty
    free: bool = False


class AttackState(NamedTuple):
    """The state of one restart between two steps.

    Attributes:
      variables: the current iterate.
      opt_state: the optimizer's state.
      best_variables: the iterate with the lowest attack loss among those evaluated.
      best_loss: `[]` attack loss of `best_variables`; `inf` until a loss is finite.
      carried: further state of the attack, such as values computed at its start, or counters.
    """

    variables: ArrayTree
    opt_state: ArrayTree
    best_variables: ArrayTree
    best_loss: Array
    carried: ArrayTree = ()


class AttackInfo(NamedTuple):
    """Diagnostics of one step: `[]` attack loss, objective and gradient norm at the iterate it evaluated."""

    attack_loss: Array
    objective: Array
    grad_norm: Array


class Attack(NamedTuple):
    """An iterative attack as three pure functions, for one target and one restart.

    Attributes:
      init: `(key, observation) -> AttackState`.
      step: `(key, state, observation) -> (AttackState, AttackInfo)`.
      decode: `(state, observation) -> Reconstruction`, the best iterate so far.
    """

    init: Callable[[Key, Observation], AttackState]
    step: Callable[[Key, AttackState, Observation], tuple[AttackState, AttackInfo]]
    decode: Callable[[AttackState, Observation], Reconstruction]
