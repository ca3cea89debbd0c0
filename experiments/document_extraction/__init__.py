"""Fields out of documents and messages, by the number of rows that are trained; see README.md."""
