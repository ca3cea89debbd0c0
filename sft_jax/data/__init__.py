"""The way of the data: records -> conversations -> tokens with weights -> pack plan -> batches.

Files in that order:

- reading.py, files/ and formats/ under records.py: rows of a file as examples (conversations.py).
- cleaning/: records changed and dropped before they are rendered.
- masking.py, template_engine.py, outlines.py, templates.py, turns.py, special_tokens.py and row_plans.py under
  rendering.py: an example as tokens with weights (rendered.py).
- tokenizing.py, workers.py and streaming.py: many of them; tokenized.py, row_store.py and cache.py: what keeps them.
- bins.py, best_fit.py and first_fit.py under packing.py; mixture.py, order.py and stream.py under plan.py: which row is
  trained on when; batches.py: its arrays.
- checks/ find what is wrong with the data; report.py shows it all to a person before training, preview/ row by row on a
  page.
"""
