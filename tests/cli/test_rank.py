"""`jaxinvert rank`: closed forms, and the attack-free figure beside them."""

from jaxinvert import cli

FAST = ["rank", "--model", "mlp-8", "--size", "16", "--targets", "2"]


def test_shows_closed_forms_and_the_attack_free_figure(capsys):
    assert cli.main(FAST) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "exact: one example" in shown
    assert "attack-free figure:" in shown
    assert "over 2 examples" in shown
    assert "labels known" in shown


def test_says_why_there_is_no_figure_and_leaves_it_out_on_request(capsys):
    assert cli.main([*FAST, "--defense", "sign"]) == 0
    assert "attack-free figure: none; defense sign" in capsys.readouterr().out
    assert cli.main([*FAST, "--linear-examples", "0"]) == 0
    assert "attack-free" not in capsys.readouterr().out
