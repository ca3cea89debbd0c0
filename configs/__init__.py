"""Experiment configs: `get_config(arg) -> ConfigDict`, one file an experiment, made to be forked."""
