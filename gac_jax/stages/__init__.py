"""Training stages: each a small task object that the one training loop runs."""
