"""Datasets, readers, the mapper and the loaders. Importing it registers the built-in datasets.

Importing it also registers a path handler, by which Detectron2 opens images in tar shards.
"""

from glipv2_d2.data import builtin, custom

__all__ = ["builtin", "custom"]
