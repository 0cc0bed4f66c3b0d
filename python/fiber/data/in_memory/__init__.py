"""Tables of rows in memory: lists of dicts, and those of pandas, pyarrow and datasets."""
