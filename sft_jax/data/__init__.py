"""The data layer: rows of files -> records -> tokens with weights -> pack plan -> batches.

Modules in that order:

- reading.py, files/ and formats/, joined by records.py and row_parser.py: rows of files as records, which hold an
  example each in one of the forms of conversations.py.
- cleaning/: records changed or dropped before they are rendered.
- rendering/: an example as tokens with weights.
- tokenizing/: many examples rendered, in this process or several; tokenized/: the result in memory, on disk and in the
  cache.
- packing/: which examples share a sequence; plan/: which example is trained on at which step; batches.py: the arrays.
- Used by cleaning and by the checks of `sft_jax.audit`: views.py (records as texts), labels.py and similarity/.
"""
