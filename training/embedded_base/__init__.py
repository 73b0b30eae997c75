"""How the embedded base model was made: a tiny Stable Diffusion trained on openly licensed emoji art."""
