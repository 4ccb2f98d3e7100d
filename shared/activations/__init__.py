"""What a language model computes inside: reading it, replacing it, streaming it to training."""
