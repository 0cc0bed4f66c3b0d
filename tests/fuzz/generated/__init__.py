"""Generator of structured inputs: what readers parse, with hostile values in any field."""
