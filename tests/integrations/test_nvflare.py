"""NVFlare's own DXOs through the filter: what is sent and comes back is in the capture, and nothing changes."""

import numpy as np
import pytest

pytest.importorskip("nvflare", reason="needs pip install 'jaxinvert[nvflare]'")

from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.fl_constant import ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.filters.percentile_privacy import PercentilePrivacy
from nvflare.app_common.filters.svt_privacy import SVTPrivacy

from jaxinvert.integrations import nvflare
from jaxinvert.observation.captures import open_round

SENT = {"conv.weight": np.arange(6, dtype=np.float32).reshape(2, 3)}


def filtered(one, kind, data, site, **meta):
    """What the filter makes of a DXO of the second round."""
    shareable = DXO(kind, data=data, meta=meta).to_shareable()
    shareable.set_header(AppConstants.CURRENT_ROUND, 1)
    context, peer = FLContext(), FLContext()
    peer.set_prop(ReservedKey.IDENTITY_NAME, site, private=False, sticky=False)
    context.set_peer_context(peer)
    return from_shareable(one.process(shareable, context))


@pytest.mark.parametrize(
    ("transfer", "kind", "said"), [("FULL", DataKind.WEIGHTS, "weights"), ("DIFF", DataKind.WEIGHT_DIFF, "delta")]
)
def test_a_round_is_recorded_and_unchanged(transfer, kind, said, tmp_path):
    options = {"mean": [0.5], "std": [0.25], "transfer": transfer, "facts": {"local": {"learning_rate": 0.1}}}
    sent = nvflare.CaptureFilter(str(tmp_path), "sent", **options)
    back = nvflare.CaptureFilter(str(tmp_path), "back", **options)
    for number, site in enumerate(("site-1", "site-2")):
        assert filtered(sent, DataKind.WEIGHTS, SENT, site).data is not None
        update = {"conv.weight": SENT["conv.weight"] + number}
        result = filtered(back, kind, update, site, num_examples=5)
        np.testing.assert_array_equal(result.data["conv.weight"], update["conv.weight"])
        assert result.data_kind == kind
    found = open_round(tmp_path / "round-0001")
    assert dict(found.facts.clients) == {"site-1": 5, "site-2": 5}
    assert (found.facts.kind, found.facts.normalization) == (said, ((0.5,), (0.25,)))
    from safetensors.numpy import load_file

    np.testing.assert_array_equal(load_file(found.updates["site-2"])["conv.weight"], SENT["conv.weight"] + 1)


def test_filters_of_clients_are_the_defense_that_they_are():
    assert nvflare.defense_of([]) is None
    spelled = nvflare.defense_of([PercentilePrivacy(percentile=20, gamma=0.05)], num_steps=2)
    assert spelled == "percentile-privacy:percentile=20,bound=0.1"
    with pytest.raises(ValueError, match="SVTPrivacy has no counterpart"):
        nvflare.defense_of([SVTPrivacy()])


def test_other_ends_are_refused(tmp_path):
    with pytest.raises(ValueError, match="expected 'sent' or 'back'"):
        nvflare.CaptureFilter(str(tmp_path), "both")
