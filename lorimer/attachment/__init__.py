"""Choosing what to adapt, and attaching to it, all or nothing."""
