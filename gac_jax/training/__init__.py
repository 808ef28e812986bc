"""The training loop and what it keeps: state, optimiser, checkpoints."""
