"""Logs of the stock Trainer with known faults, read by lora-train explain and by what else a user could install."""
