"""What a run has left on disk, read as what anybody may have been at: a kill, a disk, another version, a sender."""
