"""Kinds of files that hold tensors, and how they are written safely."""
