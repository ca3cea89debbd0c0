"""One folder per question: what is asked, the command that answers it, what was measured and learnt."""
