"""What the backward pass needs beside the inputs, by the name under which remat policies find it."""

KEPT = "attention"  # the output, and the log-sum-exp of each query's scores: of blocked, splash and triton
