"""What the papers share: files, figures, claims and the stages of an experiment."""
