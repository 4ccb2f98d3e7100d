"""What is measured of sparse autoencoders: every number defined once.

Each measure is an accumulator: `update(batch)` as often as there are batches, then `result()`. Sums
are float64 and equal those over everything at once; ratios are ratios of sums, never means of the
batches' ratios.

Vectors come without position 0 of their contexts, which is always END_OF_TEXT and is neither
trained on nor counted.
"""
