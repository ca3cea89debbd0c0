"""The way of the data: records -> conversations -> tokens with weights -> pack plan -> batches.

Files in that order:

- reading.py, files/ and formats/ under records.py and row_parser.py: rows of a file as examples (conversations.py).
- cleaning/: records changed and dropped before they are rendered.
- rendering/: an example as tokens with weights.
- tokenizing/: many of them, here or in other processes; tokenized/: what keeps them, in memory, on disk, in the cache.
- packing/: rows that share a row of the batch; plan/: which row is trained on when; batches.py: its arrays.
- Beside the way: views.py (records as texts), labels.py and similarity/, which cleaning shares with the checks of
  `sft_jax.audit`.
"""
