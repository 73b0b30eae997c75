"""Networks of our own, for weights that ordinary packages carry."""
