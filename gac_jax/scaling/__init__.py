"""What a training step or the sampler would take on a slice of chips that is not at hand."""
