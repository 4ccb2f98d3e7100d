import numpy as np

from papers.topk_scaling.tables import chosen, joined, rows

TABLE = {
    "name": np.array(["a", "b", "c"]),
    "k": np.array([4, 8, 8]),
    "history": np.arange(6).reshape(3, 2),
    "run": np.array("a record of all rows"),
}


def test_some_rows_of_all_columns():
    found = chosen(TABLE, np.array([2, 0]))
    assert found.keys() == {"name", "k", "history"}
    assert found["name"].tolist() == ["c", "a"]


def test_rows_have_all_the_values_asked_for():
    found = rows(TABLE, k=8, name="c")
    assert found["name"].tolist() == ["c"]
    assert found["history"].tolist() == [[4, 5]]
    assert len(rows(TABLE, k=5)["name"]) == 0
    assert rows(TABLE)["name"].tolist() == ["a", "b", "c"]


def test_tables_are_joined_row_by_row():
    assert joined([rows(TABLE, k=8), rows(TABLE, k=4)])["name"].tolist() == ["b", "c", "a"]
