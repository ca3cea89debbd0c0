"""From a config to the data of a run: reading, cleaning, tokenizing, checking, and the pack plan."""
