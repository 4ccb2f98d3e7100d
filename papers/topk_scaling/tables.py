"""Tables of autoencoders: a column is an array, a row is an autoencoder."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from shared.experiment import Arrays


def chosen(table: Arrays, which: np.ndarray) -> Arrays:
    """Return some rows, by number or by truth; what has no rows, such as a record, is left out."""
    return {column: values[which] for column, values in table.items() if values.ndim}


def rows(table: Arrays, **equal: object) -> Arrays:
    """Return the rows whose columns have these values: rows(table, group="grid", seed=0)."""
    which = np.ones(len(table["name"]), dtype=bool)
    for column, value in equal.items():
        which &= table[column] == value
    return chosen(table, which)


def joined(tables: Iterable[Arrays]) -> Arrays:
    """Return the rows of all tables as one."""
    tables = list(tables)
    return {column: np.concatenate([table[column] for table in tables]) for column in tables[0]}
