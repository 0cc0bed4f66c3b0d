"""Named datasets and the registry that finds the reader for a folder or file."""
