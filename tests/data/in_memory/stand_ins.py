"""Tables of libraries that are not installed, with what is read of them."""

import importlib
import json
from types import SimpleNamespace


class Frame:
    """What is read of a pandas.DataFrame."""

    def __init__(self, columns):
        self._columns, self.columns = columns, list(columns)
        self.iloc = self

    def __getitem__(self, at):
        return Column(self._columns[self.columns[at[1]]])


class Column(list):
    """What is read of a pandas.Series."""

    @property
    def iloc(self):
        return self

    def tolist(self):
        return list(self)


class Dataset:
    """What is read of a datasets.Dataset with an Arrow table."""

    def __init__(self, table):
        self.table, self.column_names = table, table.column_names
        self.features = SimpleNamespace(arrow_schema=table.schema)

    def with_format(self, kind):
        assert kind == "arrow"
        return self

    def select_columns(self, names):
        return Dataset(self.table.select(names))

    def __getitem__(self, at):
        return self.table.slice(at, 1) if isinstance(at, int) else self.table[at]


Frame.__module__, Frame.__name__ = "pandas.core.frame", "DataFrame"
Dataset.__module__ = "datasets.arrow_dataset"


def installed(name):
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def data_frame(columns):
    """Make a pandas.DataFrame, or its stand-in."""
    pandas = installed("pandas")
    return Frame(columns) if pandas is None else pandas.DataFrame(columns)


def dataset(columns, names):
    """Make a datasets.Dataset whose `objects.category` has names of classes, or its stand-in."""
    datasets = installed("datasets")
    if datasets is not None:
        objects = datasets.Sequence(
            {
                "bbox": datasets.Sequence(datasets.Value("float32"), length=4),
                "category": datasets.ClassLabel(names=names),
            }
        )
        kinds = {"image": datasets.Image(), "objects": objects, "text": datasets.Value("string")}
        features = datasets.Features({name: kinds[name] for name in columns})
        return datasets.Dataset.from_dict(columns, features=features)
    arrow = importlib.import_module("pyarrow")
    kind = {"feature": {"category": {"names": names, "_type": "ClassLabel"}}}
    described = {"info": {"features": {"objects": kind}}}
    return Dataset(
        arrow.table(columns).replace_schema_metadata({"huggingface": json.dumps(described)})
    )
