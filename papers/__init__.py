"""One folder per paper; papers import shared, never each other."""
