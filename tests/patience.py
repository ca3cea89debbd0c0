"""How long tests wait for other processes."""

PATIENCE_SECONDS = 500  # before a test fails; what takes seconds may take minutes beside much else
