"""The command ``glipv2``. Importing this package imports neither torch nor the library."""
