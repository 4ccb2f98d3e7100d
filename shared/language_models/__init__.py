"""Language models: loading by name, and training the small ones that come with the repository."""
