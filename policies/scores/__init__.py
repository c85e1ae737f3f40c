"""Scores that rank image tokens, one a file; `table` names them all, `score` says what each has to do."""
