"""Pseudo-labelling: a trained model turns image-caption pairs into grounded records."""
