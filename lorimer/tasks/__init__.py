"""Tasks, one per file: its model, data, collation, loss, metrics and preview."""
