"""Tools behind the `fiber data` command: discover, inspect, pack."""
