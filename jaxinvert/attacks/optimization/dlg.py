"""Deep Leakage from Gradients: squared distance by L-BFGS, labels as variables; and iDLG, which reads labels first.

    minimize over x, y:   sum (g(x, softmax y) - g*)^2

Ligeng Zhu, Zhijian Liu, Song Han: "Deep Leakage from Gradients", NeurIPS 2019, arXiv:1906.08935.
Bo Zhao, Konda Reddy Mopuri, Hakan Bilen: "iDLG: Improved Deep Leakage from Gradients", 2020, arXiv:2001.02610.
"""

import optax

from jaxinvert import labels
from jaxinvert.attacks import objectives
from jaxinvert.attacks.matching import gradient_matching, with_restored_labels
from jaxinvert.priors import parametrizations
from jaxinvert.types import Attack, ClientUpdateFn, Shape

MEMORY_SIZE = 30
"""Pairs of steps and gradients behind the estimate of the Hessian."""


def dlg(
    client_update: ClientUpdateFn,
    *,
    batch_shape: Shape,
    num_classes: int | None,
    memory_size: int = MEMORY_SIZE,
) -> Attack:
    """Returns DLG: images and labels are free, and the result is clipped to [0, 1].

    Three deviations. Steps are found by a zoom line search instead of being of length one, which neither diverges nor
    depends on the scale of the loss. Pixels start from `N(1/2, 1/4)` instead of `N(0, 1)`, most of which is no image:
    that saves most of the steps. And one step here is one L-BFGS step, where an iteration of the authors' optimizer
    holds up to twenty. DLG works behind smooth activations (the paper's LeNet has sigmoids), and best where the model
    reads pixels in [0, 1] unnormalized.

    Args:
      client_update: the attacker's simulation of the client.
      batch_shape: `(B, H, W, C)`.
      num_classes: `K` of the soft labels; `None` to read `observation.labels` instead.
      memory_size: steps that L-BFGS remembers.
    """
    images = parametrizations.free_pixels(batch_shape)
    if num_classes is not None:
        images = parametrizations.with_soft_labels(images, batch_size=batch_shape[0], num_classes=num_classes)
    return gradient_matching(
        client_update,
        objective=objectives.squared_l2,
        optimizer=optax.lbfgs(memory_size=memory_size),
        parametrization=images,
        name="dlg",
    )


def idlg(
    client_update: ClientUpdateFn,
    *,
    batch_shape: Shape,
    head: str = "params/head",
    memory_size: int = MEMORY_SIZE,
) -> Attack:
    """Returns iDLG: DLG on the image alone, with the label that `labels.idlg` reads off the update.

    For one example per client (all examples of a larger batch would get the same label).

    Args:
      client_update: the attacker's simulation of the client.
      batch_shape: `(1, H, W, C)`.
      head: path of the last dense layer.
      memory_size: steps that L-BFGS remembers.
    """
    attack = dlg(client_update, batch_shape=batch_shape, num_classes=None, memory_size=memory_size)
    return with_restored_labels(attack, labels.idlg(head=head), batch_size=batch_shape[0])
