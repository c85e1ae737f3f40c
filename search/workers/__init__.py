"""Ray workers, and how one worker measures a policy."""
