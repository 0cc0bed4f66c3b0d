"""What `fiber bench` runs: fiber beside every peer that is installed, on one machine in one run."""
