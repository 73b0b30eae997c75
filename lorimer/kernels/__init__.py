"""The hot path: pure functions from tensors to tensors."""
