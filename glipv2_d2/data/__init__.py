"""From files to input dicts. Importing it registers the built-in data sets.

It also teaches Detectron2 to open images in tar shards, in every process that loads data.
"""

from glipv2_d2.data import builtin, custom

__all__ = ["builtin", "custom"]
