"""Accuracy of a sentiment classifier: lora-train, the stock Trainer with the same seeds, a head on frozen features."""
