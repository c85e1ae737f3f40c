"""The search loop: proposes, promotes, confirms and shows progress."""
