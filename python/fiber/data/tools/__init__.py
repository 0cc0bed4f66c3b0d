"""Tools of the command `fiber data`: discover, inspect, pack."""
