"""Networks: those used in published gradient inversion attacks, and adapters for your own.

An attack needs only `apply(params, inputs) -> logits` or a loss function `(params, batch) -> []`. `create` builds a
published network by name, and `load_checkpoint` reads trained parameters for it. `from_linen` wraps a Flax module,
`from_functions` a pair of functions, and `import_model` either, given the name of a function that returns it.
`cross_entropy(apply)`, or for several labels per example `binary_cross_entropy(apply)`, turns either, or any other
pure function, into a client's loss; `model.loss` is the one that a model's clients minimize.
"""

from jaxinvert.models.adapters import from_equinox, from_haiku, from_keras, from_nnx, from_torch
from jaxinvert.models.checkpoints import load_checkpoint, read_facts, save_checkpoint
from jaxinvert.models.convnet import convnet
from jaxinvert.models.declared import leaf_paths, with_frozen, with_personal
from jaxinvert.models.external import check_eval_mode, import_model, is_external, source_of
from jaxinvert.models.feature_map import feature_map, features
from jaxinvert.models.layers import BATCH_NORM_MOMENTUM
from jaxinvert.models.lenet import lenet
from jaxinvert.models.lora import LORA_LAYERS, adapted_layers, text_with_lora, with_adapters, with_lora
from jaxinvert.models.losses import (
    binary_cross_entropy,
    cross_entropy,
    one_logit_cross_entropy,
    squared_error,
)
from jaxinvert.models.mlp import mlp
from jaxinvert.models.model import Calibration, Model, first_batch_norm, from_functions, from_linen
from jaxinvert.models.registry import REGISTRY, create, names
from jaxinvert.models.resnet import resnet_cifar, resnet_imagenet
from jaxinvert.models.small_convnet import small_convnet, small_convnet_bn
from jaxinvert.models.tasks import (
    as_outputs,
    check_labels,
    label_ids,
    label_in_words,
    mean_outputs,
    num_labels,
    task_of,
    with_task,
)
from jaxinvert.models.tensors import Tensor, from_named, named_shapes, to_named
from jaxinvert.models.vit import vit
from jaxinvert.models.wide_convnet import wide_convnet

__all__ = [
    "BATCH_NORM_MOMENTUM",
    "LORA_LAYERS",
    "REGISTRY",
    "Calibration",
    "Model",
    "Tensor",
    "adapted_layers",
    "as_outputs",
    "binary_cross_entropy",
    "check_eval_mode",
    "check_labels",
    "convnet",
    "create",
    "cross_entropy",
    "feature_map",
    "features",
    "first_batch_norm",
    "from_equinox",
    "from_functions",
    "from_haiku",
    "from_keras",
    "from_linen",
    "from_named",
    "from_nnx",
    "from_torch",
    "import_model",
    "is_external",
    "label_ids",
    "label_in_words",
    "leaf_paths",
    "lenet",
    "load_checkpoint",
    "mean_outputs",
    "mlp",
    "named_shapes",
    "names",
    "num_labels",
    "one_logit_cross_entropy",
    "read_facts",
    "resnet_cifar",
    "resnet_imagenet",
    "save_checkpoint",
    "small_convnet",
    "small_convnet_bn",
    "source_of",
    "squared_error",
    "task_of",
    "text_with_lora",
    "to_named",
    "vit",
    "wide_convnet",
    "with_adapters",
    "with_frozen",
    "with_lora",
    "with_personal",
    "with_task",
]
