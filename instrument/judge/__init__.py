"""Judges a run: detectors, forecasts, explanations. Imports no torch."""
