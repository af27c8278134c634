"""TAG: text by gradient matching over embeddings, by the Euclidean and the absolute distance together.

minimize over E, Y:   |g(E, Y) - g*|^2 / |g*|^2 + alpha |g(E, Y) - g*|_1 / |g*|_1

Deng, Wang, Li, Wang, Shang, Liu, Rajasekaran, Ding: TAG: Gradient Attack on Transformer-based Language Models.
EMNLP Findings 2021, arXiv:2103.06819.
"""

import jax
import jax.numpy as jnp
import optax

from jaxinvert.attacks import objectives, schedules
from jaxinvert.attacks.problem import TextProblem, declare
from jaxinvert.attacks.text_matching import search_text
from jaxinvert.trees import tree_squared_norm, tree_sum
from jaxinvert.types import Array, Attack, Scalar, Update


@declare(reconstructs="text")
def tag(
    problem: TextProblem, *, alpha: Scalar = 0.1, learning_rate: Scalar = 0.1, horizon: Scalar = 1000.0
) -> Attack:
    """TAG: Euclidean plus absolute gradient matching over embeddings (Deng et al. 2021).

    Works: on decoders of one block and single short sequences without noise, where it finds most tokens, and many
    under little noise.

    Fails: on several sequences at once and under strong noise.

    Both distances are relative to the observed update, so that `alpha` does not depend on its scale; the learning
    rate is in units of the token table's standard deviation and decays by a cosine. The paper's `alpha` depends on
    the layer.

    Args:
      problem: the client, its network and the number of sequences.
      alpha: weight of the absolute distance.
      learning_rate: of Adam, positive.
      horizon: number of steps over which the rate decays.
    """

    def objective(simulated: Update, observed: Update) -> Array:
        magnitude = tree_sum(jax.tree.map(jnp.abs, observed))
        euclidean = objectives.squared_l2(simulated, observed) / tree_squared_norm(observed)
        return euclidean + alpha * objectives.l1(simulated, observed) / magnitude

    return search_text(
        problem,
        objective=objective,
        optimizer=optax.adam(schedules.cosine_decay(learning_rate, horizon)),
        name="tag",
    )
