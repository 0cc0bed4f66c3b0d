"""Rows in memory as data.

`fiber.train`, `fiber.evaluate` and `fiber.data.open_source` take a list of dicts, a
pandas.DataFrame, a pyarrow.Table, a datasets.Dataset, or a dict of these by split, such as a
datasets.DatasetDict.
"""
