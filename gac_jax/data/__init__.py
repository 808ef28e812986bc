"""Training data: clips on disk, random crops of them, and streams of batches."""
