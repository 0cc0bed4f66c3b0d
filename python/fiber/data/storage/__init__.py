"""Random access to large files: members of tar archives."""
