"""The embedded tables: bands by hand, and what they are without scikit-learn."""

import sys

import numpy as np
import pytest

from jaxinvert import data
from jaxinvert.data import tabular
from jaxinvert.schema import blocks, decode, encoded_width


@pytest.mark.parametrize(
    ("name", "num_records", "num_columns", "num_categorical", "num_classes"),
    [("diabetes", 442, 10, 3, 2), ("wine", 178, 13, 4, 3)],
)
def test_tables_are_datasets_of_one_pixel_images(name, num_records, num_columns, num_categorical, num_classes):
    schema, dataset = data.load_table(name)
    assert len(schema) == num_columns
    assert sum(bool(column.categories) for column in schema) == num_categorical
    assert dataset.images.shape == (num_records, 1, 1, encoded_width(schema))
    assert dataset.images.min() == 0
    assert dataset.images.max() == 1
    assert np.bincount(dataset.labels).min() > num_records / 5
    assert dataset.num_classes == len(np.unique(dataset.labels)) == num_classes
    for column, block in zip(schema, blocks(schema)):
        values = dataset.images[:, 0, 0, block]
        if column.categories:
            np.testing.assert_array_equal(values.sum(axis=1), 1)
            assert values.sum(axis=0).min() > 0, f"{column.name} has an empty category"
            assert set(dataset.mean[block]) == {0}
            assert set(dataset.std[block]) == {1}
        else:
            assert (values.min(), values.max()) == (0, 1)
            assert dataset.std[block.start] == pytest.approx(values.std(), rel=1e-5)


def test_bands_hold_their_lower_edge():
    schema, dataset = data.load_table("diabetes")
    age = schema[0]
    assert age.categories == ("below 30", "30 to 40", "40 to 50", "50 to 60", "60 to 70", "from 70")
    table = decode(schema, dataset.images)
    # The first records of the set, as it is published: ages 59, 48, 72, 24, 50; sexes 2, 1, 2, 1, 1.
    assert table[:5, 0].tolist() == [3, 2, 5, 0, 3]
    assert table[:5, 1].tolist() == [1, 0, 1, 0, 0]
    assert table[0, 3] == pytest.approx(101, rel=1e-5)  # blood pressure stays a value


def test_unknown_names_and_a_missing_library_are_told(monkeypatch):
    with pytest.raises(ValueError, match="no table 'adult': expected diabetes or wine"):
        data.load_table("adult")
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r"pip install 'jaxinvert\[tabular\]'"):
        tabular.load_table("wine")
