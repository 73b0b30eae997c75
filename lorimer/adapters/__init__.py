"""Adaptation methods, one per file: the maths, the config, the names of its tensors."""
