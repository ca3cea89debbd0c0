"""Exports of models, adapters and cleaned data: written to a partial directory, checked, and only then renamed."""
