"""The preview: what will be trained on, token by token, for a person to look at before anything is trained.

selection.py chooses what is shown; examples.py makes the plain values of each example; histogram.py draws lengths,
numbers.py the numbers of findings; page.py puts it all into one HTML file with page.css and page.js inside. The cleaned
data set is written by exports/data_set.py.
"""
