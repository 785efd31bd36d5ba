"""`lora-train rows RUN`: which training rows stand out, and what a list of them is good for."""
