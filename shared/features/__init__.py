"""Reading and changing what a language model computes, by the features of an autoencoder."""
