"""Texts that are alike, found without comparing each with each; cleaning steps and checks find the same."""
