"""`jaxinvert rank`: closed forms, and the attack-free figure beside them."""

import pytest

from jaxinvert import cli

FAST = ["rank", "--model", "mlp-8", "--size", "16", "--targets", "2"]
COUNTED = [
    "rank",
    "--model",
    "mlp-16",
    "--size",
    "8",
    "--num-examples",
    "2",
    "--targets",
    "1",
    "--linear-examples",
    "0",
]


def test_shows_closed_forms_and_the_attack_free_figure(capsys):
    assert cli.main(FAST) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "exact: one example" in shown
    assert "attack-free figure:" in shown
    assert "over 2 examples" in shown
    assert "by 24 steps" in shown
    assert "Of the example of every client: PSNR of the best estimate" in shown
    assert "from one random probe per example; labels known" in shown


def test_says_which_examples_are_measured_and_that_a_bound_is_estimated(capsys):
    noisy = ["--num-examples", "3", "--targets", "1", "--defense", "gaussian"]
    assert cli.main([*FAST, *noisy]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Of the first of the 3 examples of every client" in shown
    assert "attacks without bias reach" in shown
    assert "estimated from one random probe per example" in shown


def test_says_why_there_is_no_figure_and_leaves_it_out_on_request(capsys):
    assert cli.main([*FAST, "--defense", "sign"]) == 0
    assert "attack-free figure: none; defense sign" in capsys.readouterr().out
    assert cli.main([*FAST, "--linear-examples", "0"]) == 0
    assert "attack-free" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "each has at least 2 examples"),
        (["--client", "fedavg", "--local-epochs", "3"], "each has at least 2 examples"),
        (["--client", "fedavg", "--local-optimizer", "adam"], "an update of Adam is no sum of gradients"),
        (["--client", "fedavg", "--local-weight-decay", "0.1"], "weight decay 0.1 adds the parameters"),
        (["--defense", "gaussian"], "defense gaussian changes the gradients"),
    ],
)
def test_examples_are_counted_where_an_update_is_a_sum_of_gradients(capsys, flags, said):
    assert cli.main([*COUNTED, *flags]) == 0
    shown = capsys.readouterr().out
    assert said in shown
    assert ("examples;" in shown) == (said.endswith("examples"))


TEXT = [
    "rank",
    "text",
    "--num-sequences",
    "1",
    "--length",
    "4",
    "--vocabulary",
    "30",
    "--width",
    "16",
    "--targets",
    "2",
]


@pytest.mark.slow
def test_says_of_text_and_adapters_what_ranks_allow(capsys):
    assert cli.main([*TEXT, "--lora-rank", "4"]) == 0
    shown = capsys.readouterr().out
    assert (
        "params/attention_0 (query, value): adapters of rank 4, A's updates have rank 0 of at most 8, B's 4 of 4"
        in shown
    )
    assert "2 of 2: A's update is zero; at least 4 distinct inputs, so B's excludes nothing: by search only" in shown
    assert cli.main(TEXT) == 0
    assert "span checks are exact for: all" in capsys.readouterr().out


def test_images_of_clients_with_adapters(capsys):
    vit = ["rank", "--model", "vit-pre-norm-4-16-1", "--size", "8", "--targets", "1", "--linear-examples", "0"]
    assert cli.main([*vit, "--lora-rank", "2", "--lora-layers", "query", "dense_0"]) == 0
    shown = capsys.readouterr().out
    assert "params/perceptron_0/dense_0: adapters of rank 2" in shown
    assert "span checks are exact for: none" in shown
