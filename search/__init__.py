"""How good policies are found: space, study, driver, workers, front, report, command line."""
