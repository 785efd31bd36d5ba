"""`lora-train init`: a first configuration from three answers."""
