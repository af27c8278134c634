"""Decoders trained on the public half of the embedded words, for experiments on networks that are not untrained."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxinvert.data.words import load_words
from jaxinvert.jobs.text import TextConfig, TextTask
from jaxinvert.models.tensors import nested
from jaxinvert.models.text_transformer import TextModel
from jaxinvert.trees import leaves_by_path
from jaxinvert.types import ArrayTree, Batch, Key, Params

STEPS, BATCH, RATE = 600, 32, 3e-3
"""Of Adam, with a cosine decay to zero."""


def on_trained(job: TextConfig, task: TextTask, *, steps: int = STEPS) -> TextTask:
    """The task with one trained network for all clients, on which adapters, if there are any, start anew.

    Args:
      job: the job, whose seed is that of the training, too.
      task: of the job.
      steps: of training.
    """
    plain = dataclasses.replace(job, lora_rank=None, lora_rounds=0).network()
    trained = leaves_by_path(_trained(plain, job.seed, steps))
    init = task.model.init

    def on(key: Key) -> Params:
        return nested({**leaves_by_path(init(key)), **trained})

    return task._replace(model=task.model._replace(init=on))


def loss_on_words(model: TextModel, params: Params, *, private: bool) -> float:
    """The mean cross-entropy in nats of the next word, on evenly spaced text of the private or the public half."""
    words = load_words(model.vocabulary_size)
    half = words.private if private else words.public
    starts = np.linspace(0, len(half) - model.length - 1, 500).astype(int)
    return float(jax.jit(model.loss_fn)(params, _windows(half, starts, model.length)))


def _trained(model: TextModel, seed: int, steps: int) -> Params:
    public = load_words(model.vocabulary_size).public
    rng = np.random.default_rng(seed)
    optimizer = optax.adam(optax.cosine_decay_schedule(RATE, steps))

    @jax.jit
    def step(params: Params, state: ArrayTree, batch: Batch) -> tuple[Params, ArrayTree]:
        gradient = jax.grad(model.loss_fn)(params, batch)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state

    params = jax.jit(model.init)(jax.random.key(seed))
    state = optimizer.init(params)
    for _ in range(steps):
        batch = _windows(public, rng.integers(0, len(public) - model.length, BATCH), model.length)
        params, state = step(params, state, batch)
    return params


def _windows(words: np.ndarray, starts: np.ndarray, length: int) -> Batch:
    """Sequences and the words that follow."""
    windows = words[starts[:, None] + np.arange(length + 1)]
    return Batch(jnp.asarray(windows[:, :-1]), jnp.asarray(windows[:, 1:]))
