"""Names of the files of checkpoints."""

#: Prefix of the folder of a checkpoint, and of the file of the best weights.
STEP, BEST = "step-", "best-"
#: File that lists all tensors, and the ending of those with the tensors.
INDEX, SUFFIX = ".metadata", ".distcp"
#: File with the checksums of the others.
CHECKSUMS = "SHA256SUMS"
