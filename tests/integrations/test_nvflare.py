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


def test_no_filter_of_a_client_is_passed_over():
    from nvflare.apis.dxo_filter import DXOFilter
    from nvflare.app_common.filters.convert_weights import ConvertWeights

    class MyNoise(DXOFilter):
        def __init__(self):
            super().__init__([DataKind.WEIGHTS], None)

        def process_dxo(self, dxo, shareable, fl_ctx):
            return None

    private, off = PercentilePrivacy(percentile=20, gamma=0.05), PercentilePrivacy(gamma=0.0)
    for filters, message in (([private, MyNoise()], "MyNoise has no counterpart"), ([private, private], "2 filters")):
        with pytest.raises(ValueError, match=message):
            nvflare.defense_of(filters)
    assert nvflare.defense_of([ConvertWeights("weights_to_diff"), off, private]) == nvflare.defense_of([private])


def test_what_cannot_be_recorded_is_a_warning_and_the_training_goes_on(tmp_path, caplog):
    sent, back = (nvflare.CaptureFilter(str(tmp_path), what) for what in ("sent", "back"))
    for site in ("site-1", "site 2", "site-3"):
        filtered(sent, DataKind.WEIGHTS, SENT, site)
    assert filtered(back, DataKind.WEIGHTS, SENT, "site 2").data.keys() == SENT.keys()
    assert "'site 2' is no name of" in caplog.text
    for site, count in (("site-1", -3), ("site-3", "many")):
        filtered(back, DataKind.WEIGHTS, SENT, site, num_examples=count)
    assert "site-3 says that it has 'many' examples" in caplog.text
    filtered(back, DataKind.WEIGHTS, {"x": np.array(["text"])}, "site-4")
    assert "x holds <U4" in caplog.text
    assert dict(open_round(tmp_path / "round-0001").facts.clients) == {"site-1": None, "site-3": None}


def test_a_second_run_into_the_same_folder_is_not_mixed_with_the_first(tmp_path, caplog):
    other = {"conv.weight": SENT["conv.weight"] + 1}
    for site, params in (("site-1", SENT), ("site-2", other)):
        sent, back = (nvflare.CaptureFilter(str(tmp_path), what) for what in ("sent", "back"))
        filtered(sent, DataKind.WEIGHTS, params, site)
        filtered(back, DataKind.WEIGHTS, params, site)
    assert "params.safetensors holds something else, such as from another run" in caplog.text
    assert [*open_round(tmp_path / "round-0001").updates] == ["site-1"]


def test_other_ends_are_refused(tmp_path):
    with pytest.raises(ValueError, match="expected 'sent' or 'back'"):
        nvflare.CaptureFilter(str(tmp_path), "both")
