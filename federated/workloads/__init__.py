"""What a federation can train, one kind of data a file."""
