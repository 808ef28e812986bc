"""Waveforms: files, loudness, spectra."""
