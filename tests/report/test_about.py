"""What a page says about the data, the network and the attack, in one sentence."""

from jaxinvert.report import about

RECORD = {"num_clients": 9, "num_examples": 1, "num_candidates": 88}
CONFIG = {"data": "photos", "split": "private", "model": "lenet", "attack": "spectral", "restarts": 1, "steps": 200}


def test_the_sentence_names_data_clients_network_attack_and_steps():
    assert about.about_images(CONFIG, RECORD) == (
        "Audited: 9 simulated clients with 1 image each of the data set photos (tiles of photographs that come with "
        "jaxinvert); network lenet; attack spectral, 1 restart of 200 steps."
    )


def test_whole_photographs_are_no_tiles_and_other_data_are_no_photographs():
    assert "(photographs that come with" in about.about_images(CONFIG | {"split": "test[:4]"}, RECORD)
    assert "photographs" not in about.about_images(CONFIG | {"data": "cifar10"}, RECORD)


def test_captured_clients_have_data_of_their_own_and_closed_forms_take_no_steps():
    said = about.about_images(CONFIG, RECORD | {"num_clients": 1}, closed=True, captured=True)
    assert said == "Audited: 1 captured client with 1 image; network lenet; attack spectral, in closed form."


def test_records_and_text_have_their_own_data_and_attacks():
    table = about.about_items({"table": "wine", "steps": 30}, RECORD | {"kind": "record"})
    assert table.endswith("1 record each of the table wine; network of dense layers; attack TabLeak, 30 steps.")
    text = about.about_items({"model": "decoder"}, RECORD | {"kind": "sequence", "num_examples": 4})
    assert "with 4 sequences each of random tokens; untrained transformer (decoder)" in text
