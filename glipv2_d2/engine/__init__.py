"""Configs, training, fine-tuning and pseudo-labelling."""

from glipv2_d2.engine.setup import load_config

__all__ = ["load_config"]
