"""Frozen IM perceptors, one file each: bind (trained on the data set's own pairs)."""
