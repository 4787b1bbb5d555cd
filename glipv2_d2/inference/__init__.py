"""Prediction of many images and videos: reading, a resumable journal, and files of results."""
