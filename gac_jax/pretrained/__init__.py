"""Parameters that were trained elsewhere, read from local files."""
