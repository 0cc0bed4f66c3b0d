"""Generator of structured inputs: documents that readers parse, with hostile values in any field."""
