"""Read the data of a pickle without importing or calling anything that it names.

`pickle` imports and calls whatever a file names. `torch.load(weights_only=True)` rejects pickle
protocols above 3, and files that name a class outside torch, as Lightning checkpoints do. This
reader supports basic containers, numbers and strings, the containers of sacred's configs, and the
tensor records of `torch.save`. Everything else becomes an `Inert` value.

Memory and time are linear in the size of the pickle. Its strings can be long and be referred to by
many opcodes, and its containers can share items, so that they are exponentially larger than the
pickle. Therefore no opcode builds a string or a hash from such a value.
"""

from fiber.inert_pickle.reader import MAX_OPERATIONS, read_pickle
from fiber.inert_pickle.records import (
    MAX_DIMS,
    PICKLE_ERRORS,
    HostileFileError,
    Inert,
    ObjectRecord,
    Pickle,
    StorageRecord,
    TensorRecord,
    storage_key,
)

__all__ = [
    "MAX_DIMS",
    "MAX_OPERATIONS",
    "PICKLE_ERRORS",
    "HostileFileError",
    "Inert",
    "ObjectRecord",
    "Pickle",
    "StorageRecord",
    "TensorRecord",
    "read_pickle",
    "storage_key",
]
