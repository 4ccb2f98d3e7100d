"""Figures: style, saving with provenance, citing, the gallery."""
