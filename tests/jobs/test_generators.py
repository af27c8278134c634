"""Jobs whose attack brings a generator: the whole command, the name of the job, and what is refused."""

import jax
import pytest

from jaxinvert import cli, jobs
from jaxinvert.priors import generators

SIDE = 16
SIZES = {"num_latents": 4, "width": 8}
GIAS = jobs.JobConfig.of(attack="gias-latents", model="mlp-8", size=SIDE, targets=1, restarts=1, steps=2)


def write_generator(file, seed=0):
    generator = generators.convolutional(output_shape=(SIDE, SIDE, 3), **SIZES)
    prior = generators.Prior(generator, jax.jit(generator.init)(jax.random.key(seed)))
    generators.save_prior(file, prior, options=SIZES, facts={})
    return file


def test_the_command_attacks_with_a_generator_of_ones_own(tmp_path, capsys):
    file = write_generator(tmp_path / "mine.safetensors")
    flags = ["--model", "mlp-8", "--size", str(SIDE), "--targets", "1", "--restarts", "1", "--steps", "2"]
    command = ["invert", "--attack", "gias-latents", *flags, "--out", str(tmp_path / "out")]
    assert cli.main([*command, "--generator", str(file)]) == 0
    assert "mine.safetensors" in (tmp_path / "out" / "summary.json").read_text()

    assert cli.main(command) == cli.main([*command, "--generator", str(tmp_path / "none")]) == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert "makes images of shape (32, 32, 3), but the model reads (16, 16, 3)" in shown
    assert "none" in shown


def test_the_name_of_a_job_follows_the_generators_content(tmp_path):
    first, second = (write_generator(tmp_path / f"{seed}.safetensors", seed) for seed in (0, 1))
    names = {jobs.job_name(GIAS.replace(generator=file)) for file in (None, first, second)}
    assert len(names) == 3
    before = jobs.job_name(GIAS.replace(generator=first))
    write_generator(first, seed=2)
    assert jobs.job_name(GIAS.replace(generator=first)) != before


def test_a_generator_for_another_attack_is_refused(tmp_path):
    with pytest.raises(ValueError, match="attack 'inverting-gradients' uses none; gias, gias-latents do"):
        GIAS.replace(attack="inverting-gradients", generator=tmp_path)
