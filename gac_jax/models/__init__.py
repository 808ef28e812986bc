"""Networks as pure Flax Linen modules: arrays in, arrays out; no files, flags or meshes."""
