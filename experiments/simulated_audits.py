"""Simulated audits: attackers and controls that draw from known distributions, judged by the audit's own code.

Populations are small smooth images with classes; every client holds one image among 100 candidates. `NULLS` are
attackers who know nothing of the update, `EFFECTS` those with a planted effect; see `audit_verdicts`.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from jaxinvert import audit, jobs
from jaxinvert.audit import Ground, Scores, controls, retrieval
from jaxinvert.audit.scoring import Images

_SIDE, _CLASSES = 12, 10


class Population(NamedTuple):
    """Images of one simulated audit.

    Attributes:
      ground: truth, one image per client, and candidates.
      public: `[K, H, W, 1]` means of the classes that the attacker knows.
      shared: `[H, W, 1]` pattern in all clients' images and in no other candidate; 0 by default.
    """

    ground: Ground
    public: np.ndarray
    shared: np.ndarray


class Shown(NamedTuple):
    """Reconstructions `[T, H, W, 1]` of a simulated attacker, optionally with a prescribed PSNR in dB, `[T]`."""

    pictures: np.ndarray
    psnr_db: np.ndarray | None = None


Draw = Callable[[np.random.Generator, Population, np.ndarray], Shown]
"""Draws the reconstructions of an attacker from the classes `[T]`, which are guessed if not granted."""


def simulated_audit(
    generator: np.random.Generator,
    draw: Draw,
    num_clients: int,
    granted: bool,
    num_attackers: int,
    *,
    shared: bool = False,
) -> str:
    """Simulates one audit, and returns the level of its verdict.

    Args:
      generator: random generator of everything.
      draw: draws reconstructions of an update, and of a random update from the same distribution; a planted effect
        is absent on random updates.
      num_clients: number of clients, each with one image.
      granted: whether the attackers know the classes.
      num_attackers: number of attackers, drawn independently.
      shared: whether the clients' images share a pattern that other candidates do not have.
    """
    people = population(generator, num_clients, shared=shared)
    ground, config = people.ground, jobs.JobConfig() if granted else jobs.JobConfig.of(labels="joint")
    found = {}
    for attacker in range(num_attackers):
        true_classes = ground.truth.labels[:, 0]
        known = true_classes if granted else generator.integers(0, _CLASSES, num_clients)
        attack, on_noise = draw(generator, people, known), _on_noise(draw)(generator, people, known)
        of_controls = {
            "mean image": Shown(controls.mean_image(ground)[:, 0]),
            "random update": on_noise,
            "other client": Shown(
                controls.other_client(attack.pictures),
                None if attack.psnr_db is None or draw in EFFECTS.values() else controls.other_client(attack.psnr_db),
            ),
            "prior only": Shown(0.5 + 0.02 * smooth(generator, num_clients)),
        }
        if granted:
            of_controls["class mean"] = Shown(controls.class_mean(ground)[:, 0])
        labels = true_classes if granted else None
        scores = {name: scored(shown, labels, ground) for name, shown in of_controls.items()}
        found[str(attacker)] = (config, {}, scored(attack, labels, ground), scores)
    return audit.judged("simulated", ground, found).verdict.level


def population(generator: np.random.Generator, num_clients: int, *, shared: bool) -> Population:
    """Draws classes and 100 candidates; the first `num_clients` candidates are the clients' images."""
    classes, num_candidates = 0.12 * smooth(generator, _CLASSES), 100
    labels = generator.integers(0, _CLASSES, num_candidates)
    images = 0.5 + classes[labels] + 0.12 * smooth(generator, num_candidates)
    pattern = 0.12 * smooth(generator, 1)[0] if shared else np.zeros(classes.shape[1:])
    images[:num_clients] += pattern
    images = images.clip(0, 1).astype(np.float32)
    public = 0.5 + classes + 0.12 / np.sqrt(50) * smooth(generator, _CLASSES)  # the mean of 50 others of each class
    truth = Images(images[:num_clients, None], labels[:num_clients, None])
    ground = audit.ground_truth(truth, images, labels, num_candidates=num_candidates)  # type: ignore[arg-type]
    return Population(ground, public, pattern)


def smooth(generator: np.random.Generator, count: int) -> np.ndarray:
    """`[count, H, W, 1]` smooth random images; every pixel has expectation 0 and standard deviation 1."""
    noise = generator.normal(size=(count, _SIDE, _SIDE))
    # Of independent values, a Gaussian mean of deviation s keeps 1 / (4 pi s^2) of the variance.
    return (ndimage.gaussian_filter(noise, (0, 1.0, 1.0), mode="wrap") * np.sqrt(4 * np.pi))[..., None]


def scored(shown: Shown, labels: np.ndarray | None, ground: Ground) -> Scores:
    """Scores of clients with one image, without SSIM. See `audit.score`."""
    truth, pictures = ground.truth.inputs[:, 0], shown.pictures.clip(0, 1).astype(np.float32)
    mse = np.mean(np.square(pictures - truth), axis=(1, 2, 3))[:, None]
    psnr = -10 * np.log10(mse) if shown.psnr_db is None else shown.psnr_db[:, None]
    assert ground.pool is not None
    products = np.stack([*retrieval.correlations(pictures[:, None], ground.pool)])
    picked = products.argmax(axis=2)  # as `retrieval.pick` does it for single pictures, but of all clients at once
    in_class = None
    if labels is not None:
        in_class = np.where(ground.candidates.labels == labels[:, None, None], products, -np.inf).argmax(axis=2)
    nothing = np.zeros_like(psnr)
    identified = retrieval.identified_by(picked, ground.private, ground.pool.same)
    return Scores(psnr, nothing, mse, identified, nothing, pictures[:, None], None, picked, in_class)


def _random_update(generator: np.random.Generator, people: Population, known: np.ndarray) -> Shown:
    del people
    return Shown(0.5 + 0.15 * smooth(generator, len(known)))


def _class_mean(generator: np.random.Generator, people: Population, known: np.ndarray) -> Shown:
    return Shown(people.public[known] + 0.02 * smooth(generator, len(known)))


def _failing_control(generator: np.random.Generator, people: Population, known: np.ndarray) -> Shown:
    reached = np.where(generator.random(len(known)) < 0.9, 12.5, 2.0) + generator.normal(0, 0.3, len(known))
    controls_db = -10 * np.log10(np.mean(np.square(people.ground.truth.inputs[:, 0] - 0.5)))
    return Shown(_random_update(generator, people, known).pictures, reached + controls_db - 12)


def _other_client(generator: np.random.Generator, people: Population, known: np.ndarray) -> Shown:
    images = np.roll(people.ground.truth.inputs[:, 0], -1, axis=0)
    return Shown(images + 0.02 * smooth(generator, len(known)))


def _other_candidates(generator: np.random.Generator, people: Population, known: np.ndarray) -> Shown:
    return Shown(0.5 + people.shared + 0.1 * smooth(generator, len(known)))


NULLS: dict[str, Draw] = {
    "random update": _random_update,
    "class mean": _class_mean,
    "failing control": _failing_control,
    "other client": _other_client,
    "other candidates": _other_candidates,
}


class _Planted(NamedTuple):
    """An attack with a planted effect in dB over the mean image that it knows, with or without details."""

    effect_db: float
    details: bool

    def __call__(self, generator: np.random.Generator, people: Population, known: np.ndarray) -> Shown:
        truth = people.ground.truth.inputs[:, 0]
        right = np.array_equal(known, people.ground.truth.labels[:, 0])  # granted
        base = people.public[known] if right else np.broadcast_to(people.public.mean(axis=0), truth.shape)
        error = np.mean(np.square(truth - base), axis=(1, 2, 3))
        if not self.details:
            reached = -10 * np.log10(error) + generator.normal(self.effect_db, 1.0, len(truth))
            return Shown(_random_update(generator, people, known).pictures, reached)
        # The remaining error is 10^(-effect / 10) of the mean's; half of it is missing contrast, half is noise.
        left = np.sqrt(10 ** (-self.effect_db / 10) / 2)
        noise = np.sqrt(error)[:, None, None, None] * left * smooth(generator, len(truth))
        return Shown(base + (1 - left) * (truth - base) + noise)


EFFECTS: dict[str, Draw] = {
    f"{effect:g} dB, {'details' if details else 'pixels'}": _Planted(effect, details)
    for details in (True, False)
    for effect in (1.0, 3.0, 10.0)
}


def _on_noise(draw: Draw) -> Draw:
    """The distribution of reconstructions of a random update."""
    return _random_update if isinstance(draw, _Planted) else draw
