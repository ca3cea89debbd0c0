"""From a config to the data of a run: what is read, cleaned, tokenized, checked and planned."""
