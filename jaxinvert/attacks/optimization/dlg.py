"""DLG, which minimizes the squared distance by L-BFGS over images and labels, and iDLG, which restores labels first.

    minimize over x, y:   sum (g(x, softmax y) - g*)^2

Ligeng Zhu, Zhijian Liu, Song Han: "Deep Leakage from Gradients", NeurIPS 2019, arXiv:1906.08935.
Bo Zhao, Konda Reddy Mopuri, Hakan Bilen: "iDLG: Improved Deep Leakage from Gradients", 2020, arXiv:2001.02610.
"""

import optax

from jaxinvert import labels
from jaxinvert.attacks import objectives
from jaxinvert.attacks.matching import gradient_matching, with_restored_labels
from jaxinvert.attacks.problem import Problem, declare, require_single_example
from jaxinvert.priors import parametrizations
from jaxinvert.types import Attack, Parametrization

MEMORY_SIZE = 30
"""Number of steps and gradients from which L-BFGS estimates the Hessian."""


@declare(every_round=True)
def dlg(problem: Problem, *, memory_size: int = MEMORY_SIZE) -> Attack:
    """DLG: squared distance by L-BFGS over images and labels (Zhu et al. 2019).

    Images and labels are unconstrained, and the result is clipped to [0, 1]. There are three deviations. A zoom line
    search determines the step size, which the paper sets to one: it neither diverges nor depends on the scale of the
    loss. Pixels start from `N(1/2, 1/4)` instead of `N(0, 1)`, most of which lies outside [0, 1]; this saves most of
    the steps. One step is one L-BFGS step; an iteration of the authors' optimizer has up to twenty. DLG needs smooth
    activations (the paper's LeNet has sigmoids) and works best if the model does not normalize its inputs.

    Works: on smooth small networks (sigmoid or tanh), for single images, with many steps.

    Fails: with ReLU, where second derivatives vanish, and under noise. A step is a line search and costs several
    gradients.

    Args:
      problem: labels are always optimized; `joint_labels` is ignored.
      memory_size: number of steps that L-BFGS stores.
    """
    images = parametrizations.free_pixels(problem.batch_shape)
    return _least_squares(problem, problem.with_soft_labels(images), memory_size)


@declare(every_round=True)
def idlg(problem: Problem, *, memory_size: int = MEMORY_SIZE) -> Attack:
    """iDLG: restores the label from the last layer's signs, then DLG on the one image (Zhao et al. 2020).

    Works: where DLG does, for one example per client, whose label is exact.

    Fails: where DLG does, and on batches, to whose examples it would give the same label.

    Args:
      problem: one example per client: `labels.idlg` would assign the same label to all examples of a batch.
      memory_size: number of steps that L-BFGS stores.

    Raises:
      ValueError: for more than one example.
    """
    require_single_example(problem, attack="idlg")
    attack = _least_squares(problem, parametrizations.free_pixels(problem.batch_shape), memory_size)
    rule = labels.calibrated_for(problem.model, labels.idlg(head=problem.model.head), name="idlg")
    return with_restored_labels(attack, rule, batch_size=1)


def _least_squares(problem: Problem, images: Parametrization, memory_size: int) -> Attack:
    return gradient_matching(
        problem.client_update,
        objective=objectives.squared_l2,
        optimizer=optax.lbfgs(memory_size=memory_size),
        parametrization=images,
        name="dlg",
    )
