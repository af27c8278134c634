"""The attack-free figure of a job: what its updates allow an attacker, per example, before any attack is run.

The figure is the PSNR of the best linearized estimate at the truth (`linearization`), for an attacker who knows the
labels, the network, the client's training and its defense, and of images only the spectrum of photographs. It is an
estimate, not a bound: the client is linearized, and a better prior than a spectrum reconstructs better. The noise is
that of the defense plus a reference residual: an attack that ends at a relative distance of 1 % from the observed
update (a cosine distance of 5e-5) cannot use anything smaller.

Where a defense adds noise of a known scale, the Fisher information also bounds the attacks without bias. Both are
estimated from one random probe per example, whose expectation is exact.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxinvert import jobs, nn
from jaxinvert.audit.linearization import Bidiagonals, Resolution, bidiagonals, residual_scale, resolution
from jaxinvert.clients import securely_aggregated
from jaxinvert.defenses import ranking
from jaxinvert.defenses.recipe import ClientFacts, Parameters, dp_scale
from jaxinvert.defenses.registry import Chain, protect
from jaxinvert.defenses.weights import row_noise_scales
from jaxinvert.jobs import JobConfig
from jaxinvert.jobs.deployment import deployment_of, secret_order
from jaxinvert.trees import tree_norm
from jaxinvert.types import Batch, Key, Params, Scalar, Update

RESIDUAL = 0.01
"""Reference residual, relative to the norm of the update."""
NUM_STEPS = 24
"""Steps of the bidiagonalization; each costs about as much as a step of an attack."""
_NUM_PROBES, _PROBES = 1, "one random probe per example"


Compiled = dict[str, Callable[..., Bidiagonals]]
"""Compiled measurements by the form of their job, for jobs that differ only in numbers."""


class AttackFree(NamedTuple):
    """The attack-free figure of the clients of one job, in dB, `[T, N]` each for the first `N` examples of a batch.

    Attributes:
      psnr_db: the estimate; `None` if the defense admits none, see `reason`.
      low_db: lower bound of the estimate, from what the steps have resolved.
      high_db: upper bound of the estimate.
      unbiased_db: estimate of the highest PSNR (of the expected squared error) of attacks without bias; `None` if the
        update has no noise of a known scale.
      words: what the figure assumes.
      reason: why there is no figure; empty if there is one.
      unbiased_words: the statement that `unbiased_db` supports, or why there is none.
    """

    psnr_db: np.ndarray | None
    low_db: np.ndarray | None
    high_db: np.ndarray | None
    unbiased_db: np.ndarray | None
    words: str
    reason: str
    unbiased_words: str


class _Noise(NamedTuple):
    """Noise of a defense: `(facts, own parameters, params, update) -> scales`, and whether its scale is known."""

    scales: Callable[[ClientFacts, Parameters, Params, Update], Update]
    known: bool


def _everywhere(scale: Callable[[ClientFacts, Parameters], Scalar]) -> Callable[..., Update]:
    return lambda facts, own, params, update: jax.tree.map(lambda leaf: jnp.asarray(scale(facts, own)), update)


def _of_percentiles(facts: ClientFacts, own: Parameters, params: Params, update: Update) -> Update:
    del facts, params
    return jax.tree.map(lambda leaf: own["scale"] * ranking.percentile(jnp.abs(leaf), 95.0), update)


def _of_rows(facts: ClientFacts, own: Parameters, params: Params, update: Update) -> Update:
    del facts
    return row_noise_scales(jax.tree.map(jnp.subtract, params, update), **own)


def _of_rounding(facts: ClientFacts, own: Parameters, params: Params, update: Update) -> Update:
    """Root mean square of the standard deviation of stochastic rounding in each tensor."""
    del facts, params

    def spread(leaf: jax.Array) -> jax.Array:
        step = tree_norm(leaf) / own["levels"]
        part = jnp.abs(leaf) / jnp.where(step > 0, step, 1) % 1
        return step * jnp.sqrt(jnp.mean(part * (1 - part)))

    return jax.tree.map(spread, update)


_NOISES: dict[str, _Noise] = {
    "dp-sgd": _Noise(_everywhere(dp_scale), known=True),
    "gaussian": _Noise(_everywhere(lambda facts, own: own["scale"]), known=True),
    # The Fisher information of a shift of Laplace noise is 1 / scale^2.
    "laplace": _Noise(_everywhere(lambda facts, own: own["scale"]), known=True),
    "percentile-noise": _Noise(_of_percentiles, known=False),
    "qsgd": _Noise(_of_rounding, known=False),
    "row-noise": _Noise(_of_rows, known=False),
}
_DIFFERENTIABLE = {
    "clip",
    "percentile-privacy",
    "random-k",
    "smallest-weights-zeroed",
    "soteria",
    "top-k",
    "top-k-per-tensor",
}
"""Defenses whose own derivative, at fixed choices of entries, is what they leave of the update's."""
_REFUSED = {
    "mixup": "the attacker does not know which examples are mixed, so the update is no function of one batch",
    "outpost": "noise is added at random steps and places, so its scale at the observed update is unknown",
    "precode": "the bottleneck's random draw, unknown to the attacker, is not additive noise on the update",
    "sign": "signs are constant in the examples, so their derivative is zero although they tell about the examples",
}


def refusal(chain: Chain) -> str:
    """Why a chain of defenses admits no attack-free figure; empty if it admits one.

    >>> from jaxinvert.defenses.registry import parse
    >>> refusal(parse("top-k+gaussian"))
    ''
    """
    for name in chain.names:
        if name in _REFUSED:
            return f"defense {name}: {_REFUSED[name]}"
        if name not in _NOISES and name not in _DIFFERENTIABLE:
            return f"defense {name}: how it changes the derivative of the update is not known here"
    for name, following in zip(chain.names, chain.names[1:]):
        if name in _NOISES:
            return f"defense {following} changes the noise of {name}: only noise that is added last is known here"
    return ""


def attack_free(
    config: JobConfig,
    task: jobs.Task,
    *,
    residual: float = RESIDUAL,
    num_steps: int = NUM_STEPS,
    most_examples: int | None = None,
    compiled: Compiled | None = None,
) -> AttackFree:
    """The attack-free figure of a job's clients: one compilation, and `num_steps` JVPs and VJPs per example.

    Where attacks without bias have a bound, it costs the same steps again, without the residual.

    Args:
      config: the job.
      task: the task prepared for this job.
      residual: norm of the reference residual, relative to that of the update; positive.
      num_steps: steps of the bidiagonalization.
      most_examples: number of examples per client, the first ones of the batch; `None` = all.
      compiled: cache of measurements; this one is added, and serves other numbers of the same defense.

    Raises:
      ValueError: for a residual that is not positive, or a derivative that is not finite.
    """
    if not 0 < residual < np.inf:
        raise ValueError(f"residual is {residual}, expected a positive number")
    if reason := _why_no_figure(config):
        return without_figure(reason)
    compiled = {} if compiled is None else compiled
    form = repr((jobs.compiled_form(config).flat, config.seed, num_steps, most_examples))
    if form not in compiled:
        derivative = _measure(config, task, num_steps=num_steps, most_examples=most_examples)
        compiled[form] = jax.jit(nn.at_precision(derivative, "highest"))
    measure = compiled[form]
    truth, num_pixels = task.truth, int(np.prod(task.truth.inputs.shape[2:]))
    keys = jax.random.split(jobs.stream(config.seed, jobs.Stream.ATTACK_FREE), len(truth.inputs))

    params, parameters = task.observations.params, config.defense.parameters

    def of_all(added: float) -> list[Resolution]:
        with nn.compile_fast():
            found = [
                measure(params, Batch(inputs, labels), parameters, jnp.float32(added), key)
                for inputs, labels, key in zip(*truth, keys)
            ]
        return [resolution(one, num_pixels=num_pixels) for one in jax.device_get(found)]

    figures = jax.tree.map(lambda *leaves: np.stack(leaves), *of_all(residual))
    unbiased, statement = None, _why_no_bound(config)
    if not statement:
        unbiased = np.stack([one.unbiased_db for one in of_all(0.0)])
        statement = (
            f"estimated from {_PROBES}: at this noise, and with nothing known of the images, no attack without bias "
            "has a smaller expected squared error; attacks that know how images look are biased and may come closer"
        )
    words = _in_words(config, residual, measured=figures.psnr_db.shape[1])
    return AttackFree(figures.psnr_db, figures.low_db, figures.high_db, unbiased, words, "", statement)


def without_figure(reason: str) -> AttackFree:
    """No figure, for this reason."""
    return AttackFree(None, None, None, None, "", reason, reason)


def _why_no_figure(config: JobConfig) -> str:
    chain = config.defense.chain
    if not config.granted.params:
        return (
            f"threat model {config.observation.threat_model} withholds the network's parameters, without which the "
            "derivative of the update is unknown to the attacker"
        )
    estimated = [name for name in chain.names if name in _NOISES and not _NOISES[name].known]
    if config.observation.aggregate > 1 and estimated:
        return f"defense {estimated[0]}: the noise scales of single clients are unknown behind secure aggregation"
    return refusal(chain)


def _why_no_bound(config: JobConfig) -> str:
    """Why attacks without bias have no bound; empty if they have one."""
    known = [_NOISES[name].known for name in config.defense.chain.names if name in _NOISES]
    if not known:
        return "no bound: the update has no noise"
    if not all(known):
        return "no bound: the scale of the noise depends on the private update and so tells about it"
    if config.observation.rounds > 1:
        return "no bound: the attacker also sees earlier rounds on the same examples"
    if config.granted.batch_stats:
        return "no bound: the attacker also sees running statistics, which have no noise"
    return ""


def _in_words(config: JobConfig, residual: float, *, measured: int) -> str:
    """What the figure is of, and its assumptions, in words."""
    which = "the example"
    if config.num_private > 1:
        first = "the first" if measured == 1 else f"the first {measured}"
        which = f"{'all' if measured == config.num_private else f'{first} of the'} {config.num_private} examples"
    parts = [
        f"Of {which} of every client: PSNR of the best estimate if it is linear near the truth, from {_PROBES}",
        "labels known",
        "images known by the spectrum of photographs alone (without the update 12.0 dB)",
        f"residual of {residual:.2%} of the update's norm",
    ]
    if any(name in _NOISES for name in config.defense.chain.names):
        parts.append("plus the defense's noise")
    if masking := [name for name in config.defense.chain.names if name in _DIFFERENTIABLE]:
        parts.append(f"what {' and '.join(masking)} removes tells nothing")
    if config.client.local_order == "unknown":
        parts.append("order of local steps known")
    if config.observation.rounds > 1 or config.granted.batch_stats:
        parts.append("one update alone, without what else is sent")
    return "; ".join(parts)


def _measure(
    config: JobConfig, task: jobs.Task, *, num_steps: int, most_examples: int | None
) -> Callable[..., Bidiagonals]:
    """`(params, batch, parameters of the defenses, residual, key) -> bidiagonals` for one client."""
    deployment, chain = deployment_of(config, task.model), config.defense.chain
    facts = deployment.facts(secret_order(config.client, config.seed))

    def measure(params: Params, batch: Batch, parameters: Parameters, residual: Scalar, key: Key) -> Bidiagonals:
        probe_key, defense_key = jax.random.split(key)
        protected = protect(chain, facts, parameters, facts.train(task.model.loss))
        own_parameters = [own for _, own in chain.with_own(parameters)]

        def one_client(params: Params, batch: Batch) -> Update:
            update = protected(params, batch)
            for name, recipe, own in zip(chain.names, chain.recipes, own_parameters):
                if name not in _NOISES:
                    update = recipe.update(facts, own, params)(defense_key, update)
            return update

        def noise(update: Update) -> Update:
            rest = residual_scale(update, residual)
            scales = jax.tree.map(lambda leaf: jnp.square(rest), update)
            for name, own in zip(chain.names, own_parameters):
                if name in _NOISES:  # independent noise of each client, of whom the server sees the mean
                    added = _NOISES[name].scales(facts, own, params, update)
                    squares = jax.tree.map(lambda scale: jnp.square(scale) / deployment.aggregate, added)
                    scales = jax.tree.map(jnp.add, scales, squares)
            return jax.tree.map(jnp.sqrt, scales)

        client = one_client
        if deployment.aggregate > 1:
            client = securely_aggregated(one_client, num_clients=deployment.aggregate)
        return bidiagonals(
            client,
            params,
            batch,
            noise,
            probe_key,
            num_steps=num_steps,
            num_probes=_NUM_PROBES,
            num_examples=most_examples,
        )

    return measure
