"""Training many sparse autoencoders on one stream of activations."""
