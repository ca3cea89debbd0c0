"""What a train step would need of hardware that is not there: compiled for it, and read."""
