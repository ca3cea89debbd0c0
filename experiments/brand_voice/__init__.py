"""Who the assistant says it is, in which tone it writes, and what that does to everything else; see README.md."""
