"""A model as a web service: batches of requests, HTTP, metrics."""
