"""Encoding of tables, and the scores of reconstructed records, by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxinvert import schema
from jaxinvert.metrics import records
from jaxinvert.priors import parametrizations
from jaxinvert.schema import Column

SCHEMA = (Column("age", low=20, high=70), Column("color", ("red", "green", "blue")), Column("mass", low=-1, high=1))
TABLE = np.array([[45, 2, 0], [20, 0, 1.0]])


def test_a_record_is_one_pixel_of_scaled_values_and_one_hot_blocks():
    encoded = schema.encode(SCHEMA, TABLE)
    np.testing.assert_allclose(encoded[:, 0, 0], [[0.5, 0, 0, 1, 0.5], [0, 1, 0, 0, 1]])
    assert encoded.dtype == np.float32
    np.testing.assert_allclose(schema.decode(SCHEMA, encoded), TABLE)
    soft = encoded * 0.4 + np.array([0.3, 0, 0.39, 0, 0.3])
    np.testing.assert_allclose(schema.decode(SCHEMA, soft)[0], [45, 2, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (0, 71, r"'age' holds 71, expected .* \[20, 70\]"),
        (1, 3, r"'color' holds 3, .* \[0, 3\)"),
        (2, np.nan, "mass"),
    ],
)
def test_what_a_column_cannot_hold_is_refused_by_name(column, value, message):
    table = TABLE.copy()
    table[1, column] = value
    with pytest.raises(ValueError, match=message):
        schema.encode(SCHEMA, table)


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"\(2, 2\), expected \[N, 3\]"):
        schema.encode(SCHEMA, TABLE[:, :2])
    with pytest.raises(ValueError, match=r"expected \[N, 1, 1, 5\]"):
        schema.decode(SCHEMA, np.zeros((2, 5)))


def test_variables_become_values_and_probabilities():
    both = parametrizations.records(SCHEMA, batch_size=1, mean=(0.5, 0, 0, 0, 0.25), std=(0.1, 1, 1, 1, 0.5))
    variables = jnp.log(jnp.array([[[[jnp.e, 2, 6, 2, jnp.e**0.5]]]]))
    np.testing.assert_allclose(both.decode(variables)[0, 0, 0], [0.6, 0.2, 0.6, 0.2, 0.5], rtol=1e-6)
    projected = both.project(variables * 100)
    np.testing.assert_allclose(projected[0, 0, 0, [0, 4]], [5, 1.5], rtol=1e-6)  # x = 1
    np.testing.assert_array_equal(projected[0, 0, 0, 1:4], variables[0, 0, 0, 1:4] * 100)


def test_records_are_matched_one_to_one_and_scored_by_tolerance():
    truth = np.array([[40, 1, 0.5], [60, 2, -0.5]])
    tolerance = np.array([3.0, 0, 0.1])
    found = np.array([[57.5, 2, -0.3], [43.0, 0, 0.45]])  # the second record first
    scored = records.evaluate_records(found, truth, tolerance)
    assert scored.permutation.tolist() == [1, 0]
    assert scored.correct.tolist() == [[True, False, True], [True, True, False]]
    collapsed = records.evaluate_records(truth[[0, 0]], truth, tolerance)
    assert collapsed.correct.all(axis=1).tolist() == [True, False]
    broken = records.evaluate_records(np.full_like(truth, np.nan), truth, tolerance)
    assert not broken.correct.any()
    with pytest.raises(ValueError, match="same shape"):
        records.evaluate_records(found[:1], truth, tolerance)


def test_tolerance_is_a_share_of_the_standard_deviation_of_values_alone():
    table = np.array([[30, 0, 0.2], [50, 2, 0.2]])
    np.testing.assert_allclose(records.tolerances(SCHEMA, table), [3.19, 0, 0])


def test_guesses_come_from_the_population_alone():
    table = np.array([[30, 2, 0.0], [40, 0, 0.5], [50, 2, 1.0]])
    assert records.typical_record(SCHEMA, table).tolist() == [40, 2, 0.5]
    drawn = records.drawn_records(np.random.default_rng(0), table, 50)
    assert [set(values) for values in drawn.T] == [set(values) for values in table.T]
    pairs = {(age, mass) for age, _, mass in drawn}
    assert len(pairs) > 3  # columns are drawn apart: ages come with masses of other records


def test_rates_are_shares_of_fields_by_kind_and_of_whole_records():
    columns = (Column("color", ("red", "green")), Column("mass"))
    correct = np.array([[True, True], [True, False], [False, False], [True, False]])
    found = records.rates(columns, [records.RecordQuality(correct, np.arange(4))])
    assert found == {"fields": 0.5, "categories": 0.75, "values": 0.25, "records": 0.25}
