"""Records an NVFlare job: a filter on the server that writes what is sent to the clients and what comes back.

The three lines, in the job's recipe (nvflare >= 2.8):

    from jaxinvert.integrations import nvflare

    recipe.add_server_output_filter(nvflare.CaptureFilter("/data/captures", "sent"), tasks=["train"])
    recipe.add_server_input_filter(nvflare.CaptureFilter("/data/captures", "back"), tasks=["train"])

and, in the client's script, only where the auditor may have the truth:

    capture.write_truth(f"/data/captures/round-{round:04d}", site, images, labels)

NVFlare counts rounds from 0. A round is then audited by `jaxinvert audit --capture /data/captures/round-0000 --model
my_net:make`. Filters of the clients run before the server sees an update, and are named by `facts={"defense": ...}`,
see `defense_of`. With homomorphic encryption the server sees no update, and there is nothing to record. What cannot
be recorded is a warning in the log; the training goes on.
"""
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxinvert.integrations.capture import Writer
from jaxinvert.integrations.recording import num_examples, only_warning

try:
    import nvflare
    from nvflare.apis.dxo import DXO, DataKind, MetaKey
    from nvflare.apis.dxo_filter import DXOFilter
    from nvflare.apis.fl_context import FLContext
    from nvflare.apis.shareable import Shareable
    from nvflare.app_common.app_constant import AppConstants
    from nvflare.app_common.filters.convert_weights import ConvertWeights
    from nvflare.app_common.filters.dxo_blocker import DXOBlocker
    from nvflare.app_common.filters.percentile_privacy import PercentilePrivacy
    from nvflare.app_common.filters.statistics_privacy_filter import StatisticsPrivacyFilter
except ImportError as error:
    raise ImportError("recording NVFlare needs nvflare >= 2.8: pip install 'jaxinvert[nvflare]'") from error

NUM_EXAMPLES = "num_examples"
"""The key of `FLModel.meta` under which a client may say how many examples it trained on."""


class CaptureFilter(DXOFilter):
    """Writes tensors and changes nothing.

    Args:
      folder: the folder of all rounds, an absolute path: a job runs in a folder of its own.
      what: "sent" as output filter of the server, "back" as its input filter.
      mean: per-channel means that the clients subtract from pixels in [0, 1]; with `std`.
      std: per-channel standard deviations; neither if the normalization is unknown.
      transfer: what clients return: "FULL" for weights, "DIFF" for weights after minus before.
      facts: other facts for `capture.json`, such as `{"local": {"learning_rate": 0.1, "epochs": 1}}`.
    """

    def __init__(
        self,
        folder: str,
        what: str,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        transfer: str = "FULL",
        facts: dict[str, Any] | None = None,
    ) -> None:
        super().__init__([DataKind.WEIGHTS, DataKind.WEIGHT_DIFF], None)
        if what not in ("sent", "back"):
            raise ValueError(f"what is {what!r}, expected 'sent' or 'back'")
        # NVFlare stores a job's components by the attributes that have the names of their arguments.
        self.folder, self.what, self.mean, self.std = str(folder), what, mean, std
        self.transfer, self.facts = transfer, facts

    def process_dxo(self, dxo: DXO, shareable: Shareable, fl_ctx: FLContext) -> None:
        """Writes the parameters, or one client's update; returns None, which filters nothing."""
        peer = fl_ctx.get_peer_context()
        site: Any = peer.get_identity_name() if peer else dxo.get_meta_prop(MetaKey.SITE_NAME, "unknown")
        number: Any = shareable.get_header(AppConstants.CURRENT_ROUND, dxo.get_meta_prop(MetaKey.CURRENT_ROUND, 0))
        with only_warning(f"what {site} {'was sent' if self.what == 'sent' else 'sent back'} in round {number}"):
            self._record(dxo, str(site), int(number))

    def _record(self, dxo: DXO, site: str, number: int) -> None:
        folder = Path(self.folder) / f"round-{number:04d}"
        back = self.what == "back"
        if back and (folder, site) in _REFUSED:
            raise FileExistsError(f"{folder} holds parameters that were not sent to it")
        arrays = {name: _resolved(value) for name, value in dxo.data.items()}
        # What is sent is weights; a round's facts say what comes back.
        kind = "delta" if (dxo.data_kind if back else self.transfer) in (DataKind.WEIGHT_DIFF, "DIFF") else "weights"
        facts = {"round": number, "framework": f"nvflare {nvflare.__version__}", **(self.facts or {})}
        normalization = None if self.mean is None or self.std is None else (self.mean, self.std)
        writer = Writer(folder, kind=kind, normalization=normalization, facts=facts)
        if back:
            examples = num_examples(dxo.get_meta_prop(NUM_EXAMPLES), client=site)
            return writer.client(site, arrays, num_examples=examples)
        _REFUSED.add((folder, site))
        writer.params(arrays)
        return _REFUSED.discard((folder, site))


_REFUSED: set[tuple[Path, str]] = set()
"""Rounds and sites whose parameters were not recorded; shared by the two filters of a server."""

_HARMLESS = (CaptureFilter, ConvertWeights, DXOBlocker, StatisticsPrivacyFilter)
"""Filters that change no update, or only its form."""


def defense_of(filters: Sequence[Any], *, num_steps: int = 1) -> str | None:
    """The clients' defense as `jaxinvert audit` spells it, read off NVFlare's own filters; `None` for none.

    `PercentilePrivacy` clips each step's share of an update and drops the smallest entries over all tensors; ours
    drops them tensor by tensor.

    Args:
      filters: the clients' output filters.
      num_steps: local steps, by which NVFlare divides before it clips.

    Raises:
      ValueError: for a filter that has no counterpart here, or several that have no spelling together.
    """
    changing = [one for one in filters if not isinstance(one, _HARMLESS)]
    for one in changing:
        if not isinstance(one, PercentilePrivacy):
            raise ValueError(f"{type(one).__name__} has no counterpart among the defenses of jaxinvert")
    active = [one for one in changing if one.gamma > 0 and 0 <= one.percentile <= 100]  # others do nothing
    if len(active) > 1:
        raise ValueError(f"{len(active)} filters PercentilePrivacy, one after the other, have no spelling: keep one")
    return (
        "".join(
            f"percentile-privacy:percentile={one.percentile:g},bound={one.gamma * num_steps:.6g}" for one in active
        )
        or None
    )


def _resolved(value: Any) -> Any:
    """The tensor itself, if it is one that NVFlare keeps on disk until it is used."""
    return value.materialize() if callable(getattr(value, "materialize", None)) else value
