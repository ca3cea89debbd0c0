"""The preview: what will be trained on, token by token, for a person to look at before anything is trained.

rows.py chooses rows and says what stands on the page of each; histogram.py draws lengths; page.py puts it all into one
HTML file with page.css and page.js inside. The cleaned data set is written by exports/data_set.py.
"""
