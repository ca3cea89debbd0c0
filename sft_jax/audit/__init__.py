"""Is the data good: checks and their findings, the verdict, the report, the preview page. Changes nothing."""
