"""The way of the data: records -> conversations -> tokens with weights -> pack plan -> batches.

Files in that order:

- reading.py, files/ and formats/ under records.py: rows of a file as examples (conversations.py).
- cleaning/: records changed and dropped before they are rendered.
- rendering/: an example as tokens with weights.
- tokenizing/: many of them, here or in other processes; tokenized/: what keeps them, in memory, on disk, in the cache.
- packing/: rows that share a row of the batch; plan/: which row is trained on when; batches.py: its arrays.
- checks/ find what is wrong with the data; report/ shows it all to a person before training, preview/ row by row on a
  page.
"""
