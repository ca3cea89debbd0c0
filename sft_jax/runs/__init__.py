"""What a run directory is, and how it is read: config, checkpoints, metrics, and the weights to evaluate or export."""
