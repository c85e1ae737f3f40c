"""Ray workers, and what one worker does with a policy."""
