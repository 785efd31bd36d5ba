"""Records a loop that is not lora-train's: transformers' Trainer, TRL, your own."""
