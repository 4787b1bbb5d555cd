"""From files to input dicts. Importing it registers the built-in data sets."""

from glipv2_d2.data import builtin

__all__ = ["builtin"]
