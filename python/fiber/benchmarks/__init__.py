"""`fiber bench`: compare fiber with every installed peer, on one machine and in one run."""
