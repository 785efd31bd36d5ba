"""Public configurations of other trainers: what `lora-train import` makes of them, against a reader of its own."""
