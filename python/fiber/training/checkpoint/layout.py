"""Names of the files of checkpoints."""

#: Prefix of the folder of a checkpoint, and of the file of the best weights.
STEP, BEST = "step-", "best-"
#: File that lists all tensors, and the ending of those with the tensors.
INDEX, SUFFIX = ".metadata", ".distcp"
#: Files of a checkpoint of an earlier version; the oldest have no checksums.
OLD_FILES = ("model.safetensors", "training.pt", "data.json")
CHECKSUMS = "SHA256SUMS"
