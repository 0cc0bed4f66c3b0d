"""Exported graphs against the network. `make test-export` runs them: they need its packages."""
