"""The words every room of jaxinvert shares: data as NamedTuples, seams as callables.

Axis letters used in all docstrings: `T` targets, `R` restarts, `S` local steps, `B` examples, then `H W C`;
`K` classes. Everything is written for one target and one restart; only `search` adds axes.
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
"""What the server sends to its clients: every variable of the model, trained or not."""
Update = ArrayTree
"""What a client sends back: the pseudo-gradient `params - local_params`, same tree as `Params`."""


Scalar = float | Array
"""A hyper-parameter: a Python float or a traced scalar."""


class Batch(NamedTuple):
    """A client's private examples.

    Attributes:
      inputs: `[B, H, W, C]` (or `[B, ...]`) floats; pixels in [0, 1].
      labels: `[B]` integer classes, or `[B, K]` soft labels.
    """

    inputs: Array
    labels: Array


class LocalTraining(NamedTuple):
    """How a client trains, as far as a server that set the task knows it.

    Attributes:
      learning_rate: of the client's optimizer; 1 for FedSGD, whose update is the gradient itself.
      num_steps: local optimizer steps `S` behind the update.
    """

    learning_rate: Scalar
    num_steps: Scalar


class Observation(NamedTuple):
    """Everything the server sees of one client, and all that an attack may read.

    A field that the threat model withholds is `None`; `require` turns reading it into an error.

    Attributes:
      params: the model's parameters, as sent to the client.
      update: the pseudo-gradient that came back, same tree as `params`; running statistics are not in it (zeros).
      labels: `[B]` integer labels if the attacker knows them.
      num_examples: the number of private examples `B`, if the attacker knows it.
      local_training: the client's hyper-parameters, if the attacker knows them.
      batch_stats: the running statistics that came back with the update, same tree as `params["batch_stats"]`, if
        the client sends them.
      surrogate: `[N, H, W, C]` public images of the kind the clients hold, if the attacker has any.
      defense: the parameters of what the client does to its update before it sends it, by name; empty if nothing.
      earlier_params: the model's parameters in `N` earlier rounds in which the client trained on the same examples,
        a tree like `params` with leaves `[N, ...]`.
      earlier_updates: what the client sent in these rounds, a tree like `update` with leaves `[N, ...]`.
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
"""Fields of an observation that all targets have in common; with many targets every other has a leading axis `T`."""


class Reconstruction(NamedTuple):
    """What an attack believes the private batch was.

    Attributes:
      inputs: `[B, H, W, C]` in [0, 1]; the best iterate by attack loss, never by truth.
      labels: labels the attack used or found, `[B]` or soft `[B, K]`, or `None`.
      attack_loss: `[]` the attacker-visible loss of `inputs` (before clipping, if the attack may leave [0, 1]); lower
        is better.
      info: further attacker-visible quantities, such as the loss history `[num_steps + 1]`.
    """

    inputs: Array
    labels: Array | None
    attack_loss: Array
    info: Mapping[str, Array]


LossFn = Callable[[Params, Batch], Array]
"""The client's training loss, a scalar: the contract with anybody's model."""
ApplyFn = Callable[[Params, Array], Array]
"""`(params, inputs [B, H, W, C] in [0, 1]) -> logits [B, K]`; normalizes its inputs itself."""
ClientUpdateFn = Callable[[Params, Batch], Update]
"""What a client computes; differentiable in the batch's inputs."""
Objective = Callable[[Update, Update], Array]
"""`(simulated, observed) -> []`: distance between two updates."""
Regularizer = Callable[[Array], Array]
"""`inputs [B, H, W, C] -> []`: image prior, lower is more plausible."""
Defense = Callable[[Any, Update], Update]
"""`(key, update) -> update`, what a client does before it sends; the key may be `None` if nothing is random."""
RecoverLabels = Callable[[Observation], Array]
"""`observation -> counts [K]`: how many private examples of each class."""
SolveFn = Callable[[Key, Observation], Reconstruction]
"""Every attack, iterative or closed form."""
Shape = Sequence[int]
PerChannel = float | Sequence[float]
"""A normalization constant: one for all channels, or `[C]`."""


def no_penalty(variables: ArrayTree) -> Array:
    """All variables are as likely."""
    del variables
    return jnp.zeros(())


class Parametrization(NamedTuple):
    """What the optimizer moves, and how it becomes images.

    Attributes:
      init: `key -> variables`, a random start.
      decode: `variables -> inputs [B, H, W, C]` in [0, 1] on the feasible set; or a `Batch` of inputs and soft labels
        `[B, K]`, or another NamedTuple that begins like it, where more than the images is variable.
      project: `variables -> variables`, onto the feasible set.
      penalty: `variables -> []`, added to the attack loss: how unlikely the variables are, whatever they become.
      free: whether every value of the variables is feasible, so that `project` changes nothing.
    """

    init: Callable[[Key], ArrayTree]
    decode: Callable[[ArrayTree], Any]
    project: Callable[[ArrayTree], ArrayTree]
    penalty: Callable[[ArrayTree], Array] = no_penalty
    free: bool = False


class AttackState(NamedTuple):
    """One restart in flight.

    Attributes:
      variables: the current iterate.
      opt_state: the optimizer's state.
      best_variables: the iterate with the lowest attack loss among those evaluated.
      best_loss: `[]` its attack loss; `inf` until a finite one was seen.
      carried: what the attack computed at its start, or counts, beside the optimizer's state.
    """

    variables: ArrayTree
    opt_state: ArrayTree
    best_variables: ArrayTree
    best_loss: Array
    carried: ArrayTree = ()


class AttackInfo(NamedTuple):
    """What one step saw: `[]` attack loss, objective and gradient norm at the iterate it evaluated."""

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
