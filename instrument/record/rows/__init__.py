"""What each training row adds to a step."""
