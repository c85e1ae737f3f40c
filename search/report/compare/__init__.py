"""What `skipsearch compare` shows of several studies: one HTML page and one table."""
