"""What happens when a step is not finite: diagnosis, remedies, replay."""
