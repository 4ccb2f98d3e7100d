"""Text with a label per token: the embedded corpus, local files, hub datasets."""
