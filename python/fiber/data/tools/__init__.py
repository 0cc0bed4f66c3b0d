"""What `fiber data` runs: discover, inspect, pack."""
