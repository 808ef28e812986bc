"""What is measured of a trained model: pure functions of arrays and texts."""
