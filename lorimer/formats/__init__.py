"""File formats, one per file: detect, read, write. `safe_io` alone opens weight files."""
