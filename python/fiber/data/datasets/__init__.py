"""Named datasets and the registry that finds the reader of a folder or file."""
