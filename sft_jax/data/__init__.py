"""The way of the data: records -> conversations -> tokens with weights -> pack plan -> batches.

Files in that order: files/ and formats/ under records.py, conversations.py,
templates.py and special_tokens.py under rendering.py, tokenized.py,
bins.py, best_fit.py and first_fit.py under packing.py, plan.py, batches.py; report.py shows it all to a person before
training, preview/ row by row on a page. cleaning/ changes and drops records before they are rendered, checks/ find what
is wrong with them.
"""
