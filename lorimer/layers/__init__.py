"""Where an adapter meets a layer: one host class, and how each layer type sees its weight."""
