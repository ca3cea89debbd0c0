"""Classes of messages: written as an answer, or chosen as the likeliest one, by examples a class; see README.md."""
