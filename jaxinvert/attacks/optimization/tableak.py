"""TabLeak: recovers tabular records by cosine matching of relaxed categories, pooled over an ensemble of searches.

    minimize over z:   1 - <g(x(z)), g*> / (|g(x(z))| |g*|),      x(z) = softmax of each categorical block of z

from many starts. Each member returns its records in arbitrary order, so its records are matched one-to-one to those
of the member with the lowest attack loss. A continuous value is then the members' median; a category has their mean
probability. If the members disagree, the entropy is high and the attacker trusts the value less.

Mark Vero, Mislav Balunovic, Dimitar I. Dimitrov, Martin Vechev: "TabLeak: Tabular Data Leakage in Federated
Learning", ICML 2023, arXiv:2210.01785.
"""

import jax
import jax.numpy as jnp
import optax

from jaxinvert import search
from jaxinvert.attacks import objectives
from jaxinvert.attacks.matching import gradient_matching, update_distance
from jaxinvert.attacks.problem import Problem, declare
from jaxinvert.attacks.transformations import signed_adam
from jaxinvert.parallel.lanes import lanes_at_once, map_lanes
from jaxinvert.priors import parametrizations
from jaxinvert.schema import Schema, blocks
from jaxinvert.types import (
    Array,
    Attack,
    Batch,
    Key,
    Observation,
    Reconstruction,
    Scalar,
    SolveFn,
)


def tableak_member(problem: Problem, *, learning_rate: Scalar = 0.06) -> Attack:
    """One search of TabLeak, with the paper's settings: known labels, Adam on gradient signs, no prior.

    Two deviations: the start is normal, not uniform; continuous values are clipped to their bounds in the model's
    normalized space, whereas the paper's program passes them through a sigmoid.

    Args:
      problem: has a `schema`; its model reads encoded records `[B, 1, 1, F]`.
      learning_rate: of Adam, in units of the model's `std`.

    Raises:
      ValueError: without a schema.
    """
    model = problem.model
    return gradient_matching(
        problem.client_update,
        objective=problem.objective or objectives.cosine,
        optimizer=signed_adam(learning_rate),
        parametrization=parametrizations.records(
            _schema_of(problem), batch_size=problem.num_examples, mean=model.mean, std=model.std
        ),
        name="tableak",
    )


@declare("labels", adapts=True, reconstructs="records")
def tableak(
    problem: Problem,
    *,
    learning_rate: Scalar = 0.06,
    num_members: int = 30,
    num_steps: int = 1500,
    chunk_size: int | None = None,
) -> SolveFn:
    """TabLeak: tabular records by an ensemble of searches whose results are pooled (Vero et al. 2023).

    The reconstruction's `inputs` are the pooled records `[B, 1, 1, F]`, with probabilities for categories
    (`schema.decode` selects the most likely one), and `attack_loss` is the loss of the pooled records. `info` has the
    matched `members` `[M, B, 1, 1, F]`, their `member_losses` `[M]` and `entropy` `[B, columns]`, see `entropy`.

    Works: on records of numbers and categories, in batches to 32.

    Fails: gradually, as batches grow: more and more fields are those of a guess.

    Args:
      problem: has a `schema`; its model reads encoded records `[B, 1, 1, F]`. Entropies are in units of its `std`.
      learning_rate: of Adam, in units of the model's `std`.
      num_members: number of members `M`; those without a finite final loss are excluded from the pool.
      num_steps: steps of each member.
      chunk_size: members evaluated at once under vmap; by default `lanes_at_once`.

    Raises:
      ValueError: without a schema.
    """
    schema = _schema_of(problem)
    distance = update_distance(problem.client_update, problem.objective or objectives.cosine)
    member = search.run(tableak_member(problem, learning_rate=learning_rate), num_steps=num_steps)
    std_row = problem.std_image

    def solve(key: Key, observation: Observation) -> Reconstruction:
        lanes = chunk_size or lanes_at_once(observation.update, num_members)
        found = map_lanes(lambda lane: member(lane, observation), jax.random.split(key, num_members), lanes)
        finite = jnp.isfinite(found.attack_loss)
        losses = jnp.where(finite, found.attack_loss, jnp.inf)
        best = found.inputs[jnp.argmin(losses)]
        labels = found.labels[0]
        members = jax.vmap(lambda inputs: matched(inputs / std_row, best / std_row, labels) * std_row)(found.inputs)
        pooled = jnp.where(jnp.any(finite), pool(schema, members, finite), best)
        loss = distance(observation, Batch(pooled, labels))
        spread = entropy(schema, members / std_row[None], finite)
        info = {"members": members, "member_losses": losses, "entropy": spread}
        return Reconstruction(pooled, labels, jnp.where(jnp.isfinite(loss), loss, jnp.inf), info)

    return solve


def _schema_of(problem: Problem) -> Schema:
    if problem.schema is None:
        raise ValueError("tableak recovers tabular records: the problem needs a schema")
    return problem.schema


def matched(inputs: Array, reference: Array, labels: Array) -> Array:
    """Reorders the records by one-to-one assignment to their nearest reference records of the same label.

    Args:
      inputs: the records, `[B, ...]`.
      reference: `[B, ...]`.
      labels: labels of both, `[B, ...]`.
    """
    size = len(inputs)
    found, wanted, labels = (array.reshape(size, -1) for array in (inputs, reference, labels))
    distances = jnp.sum((wanted[:, None] - found[None, :]) ** 2, axis=-1)
    apart = jnp.any(labels[:, None] != labels[None, :], axis=-1)
    beyond_all = 1 + jnp.sum(distances)
    rows, columns = optax.assignment.hungarian_algorithm(distances + apart * beyond_all)
    return inputs[columns[jnp.argsort(rows)]]


def pool(schema: Schema, members: Array, valid: Array) -> Array:
    """Medians of continuous columns and mean probabilities of categories over the valid members.

    Args:
      schema: the columns.
      members: `[M, B, 1, 1, F]`, matched.
      valid: `[M]` bool, at least one.
    """
    known = jnp.where(valid[:, None, None, None, None], members, jnp.nan)
    median, mean = jnp.nanmedian(known, axis=0), jnp.nanmean(known, axis=0)
    return jnp.concatenate(
        [(mean if column.categories else median)[..., block] for column, block in zip(schema, blocks(schema))],
        axis=-1,
    )


def entropy(schema: Schema, members: Array, valid: Array) -> Array:
    """The members' disagreement `[B, columns]`, comparable between columns of the same kind.

    For a category: the entropy of its mean probabilities relative to a uniform distribution, in [0, 1]. For a
    continuous value: the entropy of a normal variable with the members' standard deviation `s`,
    `log(2 pi e s^2) / 2` nats; `s` is at least 1e-3, below which members count as equal.

    Args:
      schema: the columns.
      members: `[M, B, 1, 1, F]`, matched, in units of the columns' standard deviations.
      valid: `[M]` bool, at least one.
    """
    known = jnp.where(valid[:, None, None, None, None], members, jnp.nan)[:, :, 0, 0]
    mean, scale = jnp.nanmean(known, axis=0), jnp.maximum(jnp.nanstd(known, axis=0), 1e-3)
    columns = [
        jnp.sum(jax.scipy.special.entr(mean[:, block]), axis=1) / jnp.log(column.width)
        if column.categories
        else jnp.log(2 * jnp.pi * jnp.e * scale[:, block.start] ** 2) / 2
        for column, block in zip(schema, blocks(schema))
    ]
    return jnp.stack(columns, axis=1)
