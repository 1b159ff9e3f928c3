"""Megatron-LM's training, native on MindSpore's dynamic graph.

Importing the package starts nothing: no device, no launcher, no communication library.
"""

__version__ = "0.2.0"
