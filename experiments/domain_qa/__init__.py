"""Questions of a domain, answered from the weights or from a corpus of the same answers; see README.md."""
