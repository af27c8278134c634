"""`Training`: federated training as a host loop over one compiled program, with reports and resumption."""

import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxinvert.federation.averaging import Federation, FederationState
from jaxinvert.federation.population import Population
from jaxinvert.types import ApplyFn, Array, Batch, Key, Params

_SECONDS_BETWEEN_STATES = 1.0


class Snapshot(NamedTuple):
    """One report of a running training.

    Attributes:
      round: rounds done.
      accuracy: fraction of test examples that are classified correctly, 0 ... 1.
      loss: mean cross-entropy of the test examples.
      update_norm: Euclidean norm of the last round's average update; `None` before the first round.
      state: pass it as `resume` to continue; clients of the next round train on `state.params`, which attackers know.
    """

    round: int
    accuracy: float
    loss: float
    update_norm: float | None
    state: FederationState


class Training:
    """Federated training as a host loop over one compiled program.

    Construct it once and call it often: settings and numbers of rounds are traced, so only a new shape recompiles.
    The host synchronizes about once a second, not once per round, and at every report.

    Args:
      make_federation: `settings -> Federation`; called inside the traced function.
      apply: `(params, inputs [B, ...]) -> logits [B, K]`, to measure accuracy; BatchNorm in eval mode.
      chunk_size: test examples evaluated side by side.

    Attributes:
      num_traces: how often the program was traced so far.
    """

    def __init__(
        self, make_federation: Callable[[Any], Federation], apply: ApplyFn, *, chunk_size: int = 256
    ) -> None:
        self.make_federation = make_federation
        self.apply = apply
        self.chunk_size = chunk_size
        self.num_traces = 0
        self._advance = jax.jit(self._rounds_upto)
        self._measure = jax.jit(partial(evaluate, apply, chunk_size=chunk_size))

    def __call__(
        self,
        key: Key,
        params: Params,
        population: Population,
        test: Batch,
        settings: Any = (),
        *,
        rounds: Iterable[int],
        resume: FederationState | None = None,
        on_state: Callable[[FederationState], None] = lambda state: None,
    ) -> Iterator[Snapshot]:
        """Trains up to the last of `rounds` and yields a report after each of them.

        Args:
          key: determines the result, together with the shapes; `rounds` do not change it.
          params: the model's parameters before the first round.
          population: the clients.
          test: `inputs [M, ...]`, integer `labels [M]`.
          settings: passed to `make_federation` as float32 scalars.
          rounds: rounds to report, ascending; 0 is before the first.
          resume: a state of an earlier call, from `Snapshot.state` or `on_state`, to continue from instead of
            `params`, to the same result; rounds already done are not reported again.
          on_state: called about once a second between two reports, with the state after some more rounds.

        Raises:
          ValueError: if `rounds` are not ascending and non-negative.
        """
        rounds = [*rounds]
        if any(later <= earlier for earlier, later in zip([-1, *rounds], rounds)):
            raise ValueError(f"rounds must ascend, and begin at 0 or later, got {rounds}")
        settings = jax.tree.map(lambda value: jnp.asarray(value, jnp.float32), settings)
        state = self.make_federation(settings).init(params) if resume is None else resume
        done, stride, update_norm = int(state.round), 1, None
        for report in rounds:
            if resume is not None and report <= int(resume.round):
                continue
            while done < report:
                begin, upto = time.perf_counter(), min(report, done + stride)
                state, update_norm = self._advance(key, state, population, settings, upto)
                update_norm = float(update_norm)  # waits for the rounds
                seconds, advanced, done = time.perf_counter() - begin, upto - done, upto
                stride = max(1, min(2 * stride, int(advanced * _SECONDS_BETWEEN_STATES / seconds)))
                if done < report:
                    on_state(state)
            accuracy, loss = self._measure(state.params, test)
            yield Snapshot(report, float(accuracy), float(loss), update_norm, state)

    def _rounds_upto(
        self, key: Key, state: FederationState, population: Population, settings: Any, upto: Array
    ) -> tuple[FederationState, Array]:
        self.num_traces += 1
        federation = self.make_federation(settings)

        def round_(carry: tuple[FederationState, Array]) -> tuple[FederationState, Array]:
            return federation.round(key, carry[0], population)

        norm = jax.eval_shape(federation.round, key, state, population)[1]
        start = (state, jnp.zeros(norm.shape, norm.dtype))
        return lax.while_loop(lambda carry: carry[0].round < upto, round_, start)


def evaluate(apply: ApplyFn, params: Params, test: Batch, *, chunk_size: int = 256) -> tuple[Array, Array]:
    """Accuracy and mean cross-entropy on `test`: `([], [])`. Pure.

    Args:
      apply: `(params, inputs [B, ...]) -> logits [B, K]`; must not couple examples.
      params: the model's parameters.
      test: `inputs [M, ...]`, integer `labels [M]`.
      chunk_size: examples evaluated side by side.

    Raises:
      ValueError: when traced with labels that are no classes, or with one logit, which tells no classes apart.
    """
    logits = lax.map(lambda one: apply(params, one[None])[0], test.inputs, batch_size=chunk_size)
    if test.labels.shape != logits.shape[:1] or not jnp.issubdtype(test.labels.dtype, jnp.integer):
        labels = f"{test.labels.dtype} {test.labels.shape}"
        raise ValueError(f"accuracy needs integer labels [M], one class per example, got {labels}")
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(f"accuracy needs one logit per class, [M, K] with K > 1, got logits {logits.shape}")
    accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == test.labels)
    return accuracy, jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, test.labels))
