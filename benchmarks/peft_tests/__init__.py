"""PEFT's own tests, with its LoRA linears as they are and with the fused forward on every one of them."""
